"""Two virtual machines with different kernels, and `make vagrant-demo`, which moves a program between them."""
