#!/busybox sh
# The first program of the measured Linux: runs the kernel's own dirty_log_perf_test with the arguments that stand behind
# "--" on the kernel's command line, in the guest mode that Parvisor's guests have too (4K pages, 48-bit virtual
# addresses), on the CPUs that the variable CPUS names, and switches off. Lines that begin with "@linux" are for the tool
# that started the machine.

PATH=/
fail() {
    echo "@linux error: $*"
    busybox poweroff -f
}

for directory in dev proc sys; do busybox mkdir -p /$directory; done
busybox mount -t devtmpfs none /dev
busybox mount -t proc none /proc
busybox mount -t sysfs none /sys

[ -c /dev/kvm ] || fail "this kernel has no KVM on this CPU"
echo always >/sys/kernel/mm/transparent_hugepage/enabled || fail "this kernel has no transparent huge pages"
# The list of modes is printed by a VM too: not by one that splits eagerly, which would end here where there is none.
mode=$(EAGER_SPLIT_CHUNK= dirty_log_perf_test -h |
    busybox sed -n 's/^ *\([0-9]*\): *PA-bits:[34][0-9], *VA-bits:48, *4K pages (supported)$/\1/p' | busybox head -n 1)
[ -n "$mode" ] || fail "this kernel runs no guests with 4K pages and 48-bit virtual addresses"

echo "@linux begin"
busybox taskset -c "$CPUS" dirty_log_perf_test -m "$mode" "$@" 2>&1
echo "@linux end $?"
busybox poweroff -f
