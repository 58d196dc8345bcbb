#!/busybox sh
# The first program of the Linux under whose KVM operations are measured: runs the guest with each of the device trees, of which
# each names what it does, on VCPUS vCPUs, from CPU 1 on. Lines that begin with "@" are for the tool that started the machine.

PATH=/
for directory in dev proc sys; do busybox mkdir -p /$directory; done
busybox mount -t devtmpfs none /dev
busybox mount -t proc none /proc
busybox mount -t sysfs none /sys
busybox mount -t debugfs none /sys/kernel/debug

for tree in /*.dtb; do
    echo "@run ${tree##*/}"
    vmm /guest "$tree" "$VCPUS" 1
done
busybox poweroff -f
