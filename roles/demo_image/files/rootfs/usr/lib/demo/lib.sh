# Shared by the boot script and the DHCP client's.
# shellcheck shell=sh

# One fact a line on the console: people read it, tests parse it.
say() {
    echo "barestack-demo: $*" >/dev/console
}

# add_route DESTINATION GATEWAY DEVICE; gateway 0.0.0.0 is none. The first NIC's default route wins: its metric is lowest.
add_route() {
    metric=$(cat "/sys/class/net/$3/ifindex")
    if [ "$2" = 0.0.0.0 ]; then
        ip route replace "$1" dev "$3" metric "$metric"
    else
        ip route replace "$1" via "$2" dev "$3" metric "$metric"
    fi && say "route=$3 $1 $2"
}
