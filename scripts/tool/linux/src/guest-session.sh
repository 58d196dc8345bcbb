#!/bin/busybox sh
# What a guest is for: the user's command if there is one, else a shell on the console; then it powers off. The lines that begin
# with "@" and the token are for the tool that started the machine. Nobody else knows the token, so no output can be taken for
# them.

export HOME=/root PATH=/bin
cd /root
token=$(cat /run/token)
rm /run/token

if [ -e /run/command ]; then
    # Nothing of the kernel's is to come between, and nothing is to be changed on the way.
    echo 1 >/proc/sys/kernel/printk
    stty -opost -echo
    if [ -e /bin/load ]; then
        # It says itself when it has begun.
        sh /run/command "@$token begin" </dev/null
    else
        echo "@$token begin"
        sh /run/command </dev/null
    fi
    echo "@$token end $?"
else
    [ ! -s /run/terminal ] || stty $(cat /run/terminal)
    echo "Linux $(uname -r), $(nproc) CPUs. poweroff ends it, and so does leaving this shell."
    # Where firmware came first, the tool doesn't wait for it.
    [ -z "$token" ] || echo "@$token ready"
    setsid cttyhack sh -l
fi
# Setting it waits until the console has sent all.
stty opost
poweroff -f
