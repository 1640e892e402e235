# From the flattened network_data.json: "MAC ADDRESS/PREFIX GATEWAY MTU" for each IPv4 address that no DHCP server gives.
$1 == "links" && $3 == "ethernet_mac_address" { identifier_mac[$2] = $4 }
$1 == "links" && $3 == "id" { identifier[$2] = $4 }
$1 == "links" && $3 == "mtu" && $4 != "null" { identifier_mtu[$2] = $4 }
$1 == "networks" && NF == 4 { network[$2, $3] = $4; if ($2 >= networks) networks = $2 + 1 }
$1 == "networks" && $3 == "routes" { route[$2, $4, $5] = $6; if ($4 >= routes[$2]) routes[$2] = $4 + 1 }

END {
    for (item in identifier) {
        mac[identifier[item]] = tolower(identifier_mac[item])
        mtu[identifier[item]] = identifier_mtu[item]
    }
    for (item = 0; item < networks; item++) {
        link = network[item, "link"]
        if (network[item, "type"] != "ipv4" || !(link in mac))
            continue
        gateway = ""
        for (number = 0; number < routes[item]; number++)
            if (route[item, number, "network"] == "0.0.0.0" && route[item, number, "netmask"] == "0.0.0.0")
                gateway = route[item, number, "gateway"]
        print mac[link], address(network[item, "ip_address"], network[item, "netmask"]), or_dash(gateway), or_dash(mtu[link])
    }
}

function or_dash(text) {
    return text == "" ? "-" : text
}

function address(ip, netmask,    octet, part, prefix) {
    if (ip ~ /\//)
        return ip
    prefix = 0
    split(netmask, octet, ".")
    for (part = 1; part <= 4; part++)
        for (; octet[part] > 0; octet[part] = octet[part] * 2 % 256)
            prefix++
    return ip "/" prefix
}
