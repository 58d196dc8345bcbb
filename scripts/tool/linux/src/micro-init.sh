#!/busybox sh
# The first program of the Linux under whose KVM operations are measured: runs the guest with each of the device trees, of which
# each names what it does, on VCPUS vCPUs, from CPU 1 on; or, if LINUX is a device tree, boots Linux as a guest with that, with RAM of MIB and its
# file system at INITRD, and counts its exits. Lines that begin with "@" are for the tool that started the machine.

PATH=/
for directory in dev proc sys; do busybox mkdir -p /$directory; done
busybox mount -t devtmpfs none /dev
busybox mount -t proc none /proc
busybox mount -t sysfs none /sys
busybox mount -t debugfs none /sys/kernel/debug

if [ -n "$LINUX" ]; then
    # Exits by what has ended the run of the vCPU (0: an interrupt, 2: an exception) and the exception's class.
    busybox mount -t tracefs none /sys/kernel/tracing
    trigger=/sys/kernel/tracing/events/kvm/kvm_exit
    echo 'hist:keys=ret,esr_ec' >$trigger/trigger || echo "@micro wrong: the kernel has no histograms"
    vmm /linux "$LINUX" 1 1 "$MIB" /boot.cpio "$INITRD"
    busybox sed -n 's/^{ ret: *\([0-9]*\), esr_ec: *\([0-9]*\) } hitcount: */@exit \1 \2 /p' $trigger/hist
    busybox poweroff -f
fi
for tree in /*.dtb; do
    echo "@run ${tree##*/}"
    vmm /guest "$tree" "$VCPUS" 1 64
done
busybox poweroff -f
