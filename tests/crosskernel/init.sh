#!/bin/sh
# The first process of a guest, in its initial RAM disk: makes this machine's filesystem the root, read-only, the test
# bed's directory writable, and everything else the guest's own.
#
# Kernel command line: name=HOSTNAME address=A.B.C.D/N bed=DIRECTORY (the same path as on this machine), and
# checkout=DIRECTORY, which may be below one that is the guest's own. What runs in the end is BED/HOSTNAME/start.
export PATH=/bin
mount -t proc proc /proc
# read before /proc moves
for word in $(cat /proc/cmdline); do
    case $word in
        name=*) name=${word#name=} ;;
        address=*) address=${word#address=} ;;
        bed=*) bed=${word#bed=} ;;
        checkout=*) checkout=${word#checkout=} ;;
    esac
done
while read -r module; do
    insmod "/modules/$module.ko"
done </modules/order
hostname "$name"
ip link set lo up
# another name than tests/hosts.py gives: Linux 5.10 takes the names of our own for those of another namespace, too
ip link set eth0 name net0
ip address add "$address" dev net0
ip link set net0 up
# cached for good: nothing is changed there while guests are up but what a test run itself adds
mount -t virtiofs -o ro root /new
mount -t devtmpfs dev /new/dev
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /new/dev/pts
mount -t tmpfs -o mode=1777 shm /new/dev/shm
mount -t sysfs sys /new/sys
mount -t cgroup2 cgroup /new/sys/fs/cgroup
mkdir /checkout
mount -o bind "/new$checkout" /checkout
mount -t tmpfs -o mode=1777 tmp /new/tmp
mount -t tmpfs -o mode=1777 tmp /new/var/tmp
mount -t tmpfs -o mode=755 run /new/run
mkdir -p /new/run/sshd /new/run/lock "/new$bed"
mount -t virtiofs bed "/new$bed"
[ -e "/new$checkout" ] || { mkdir -p "/new$checkout" && mount -o bind /checkout "/new$checkout"; }
mount -t proc proc /new/proc
exec switch_root /new /bin/sh "$bed/$name/start"
