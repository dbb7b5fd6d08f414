# Read by train.sh, test.sh and scripts/dist_train.sh, which set $root to the checkout.
# shellcheck shell=sh disable=SC2154

# Set $python to the environment's interpreter, and change to the checkout, where relative paths inside option files start.
enter_checkout() {
    python=$(sh "$root/scripts/setup_env.sh")
    # Import this checkout's code even where the environment has another copy of the package.
    PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
    cd "$root" || exit 1
}

# absolute FILE: its absolute path where it exists here, else FILE, which is then looked up from the checkout.
absolute() {
    if [ -f "$PWD/$1" ]; then printf '%s\n' "$PWD/$1"; else printf '%s\n' "$1"; fi
}

# number NAME VALUE LEAST MOST: ends the script, before anything is started, unless VALUE is a whole number in this range.
number() {
    case $2 in
    '' | *[!0-9]* | ??????*) ;;
    *) if [ "$2" -ge "$3" ] && [ "$2" -le "$4" ]; then return; fi ;;
    esac
    echo "error: $1: a whole number from $3 to $4 is needed, not '$2'; correct the variable, or unset it" >&2
    exit 2
}

# run_quantsr COMMAND DEFAULT_OPTION_FILE [ARGS]
# `X.yml ARGS` is short for `-opt X.yml ARGS`; without an option file the default one is used.
run_quantsr() {
    command=$1 default=$2
    shift 2
    [ "$command" != train ] || number NPROC "${NPROC:-1}" 1 1024 # a test runs in one process
    case ${1-} in
    -*) ;;
    *.yml | *.yaml) set -- -opt "$@" ;;
    esac

    has_file=
    previous=
    count=$#
    for word in "$@"; do
        case $word in
        -opt | --opt | -h | --help) has_file=yes ;;
        -opt=* | --opt=*)
            has_file=yes
            word=${word%%=*}=$(absolute "${word#*=}")
            ;;
        *)
            case $previous in
            -opt | --opt) word=$(absolute "$word") ;;
            esac
            ;;
        esac
        previous=$word
        set -- "$@" "$word"
    done
    shift "$count"
    [ -n "$has_file" ] || set -- -opt "$default" "$@"

    enter_checkout
    if [ "$command" = train ] && [ "${NPROC:-1}" -gt 1 ]; then
        exec "$python" -m torch.distributed.run --standalone --nproc_per_node="$NPROC" -m quantsr "$command" "$@"
    fi
    exec "$python" -m quantsr "$command" "$@"
}
