# Sourced. debian_packages WHO TOOL:PACKAGES...  installs the packages (separated by commas) of tools that are not here
# where that is allowed; otherwise says what is missing. Exit code 3: they are not here and cannot be had.
debian_packages() {
    local who=$1 missing=() install pair packages
    shift
    for pair in "$@"; do
        if ! command -v "${pair%%:*}" >/dev/null; then
            IFS=, read -r -a packages <<<"${pair#*:}"
            missing+=("${packages[@]}")
        fi
    done
    [ "${#missing[@]}" -eq 0 ] && return 0
    if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
        echo "$who ${missing[*]} (Debian's packages; as root this script installs them)" >&2
        exit 3
    fi
    export DEBIAN_FRONTEND=noninteractive
    install=(timeout 600 apt-get install -y -q --no-install-recommends "${missing[@]}")
    if ! { "${install[@]}" || { timeout 120 apt-get update -q && "${install[@]}"; }; } >&2; then
        echo "apt-get could not install ${missing[*]}" >&2
        exit 3
    fi
}
