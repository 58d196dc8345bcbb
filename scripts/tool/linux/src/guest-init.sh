#!/bin/busybox sh
# The first program of a guest: makes the system usable, and gives over to busybox's init, which starts the session.

busybox=/bin/busybox
$busybox mkdir -p /proc /sys /dev /tmp
$busybox mount -t devtmpfs none /dev
$busybox mount -t proc none /proc
$busybox mount -t sysfs none /sys
$busybox mkdir -p /dev/pts /dev/shm
$busybox mount -t devpts none /dev/pts
$busybox mount -t tmpfs none /dev/shm
$busybox --install -s /bin
$busybox hostname parvisor
$busybox ip link set lo up
exec $busybox init
