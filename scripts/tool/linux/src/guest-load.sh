# The load of a guest whose memory is logged, until a line is typed: a writer on each CPU, and work of the kernel's own, which
# is files in tmpfs and in the page cache, and processes. $1 is the line to print when all of it has begun.

work() {
    while [ ! -e /run/over ]; do
        dd if=/dev/urandom of=/dev/shm/one bs=64k count=16 2>/dev/null
        cp /dev/shm/one /root/two
        cmp /dev/shm/one /root/two || touch /run/failed
        rm /dev/shm/one /root/two
        for process in 1 2 3 4; do /bin/true; done
    done
}

work &
/bin/load "$1" </dev/console
status=$?
touch /run/over
wait
[ ! -e /run/failed ] || status=1
exit $status
