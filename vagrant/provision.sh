#!/bin/bash
# What a machine needs: provision.sh NAME SOURCE-ADDRESS DESTINATION-ADDRESS, run as root by Vagrant. `demo` brings what
# is installed here, and the key by which the two machines let each other in; without it (a plain `vagrant up`) that is
# left out.
set -euo pipefail
name=$1
shift
hostname "$name"
for address; do
    grep -qF "$address " /etc/hosts || echo "$address $([ "$address" = "$1" ] && echo source || echo destination)" >>/etc/hosts
done
if ! command -v python3 >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y python3
fi
echo "$name: $(uname -r), $(python3 -V)"
