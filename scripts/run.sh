# Read by train.sh and test.sh, which set $root to the checkout.
# shellcheck shell=sh disable=SC2154

# run_quantsr COMMAND DEFAULT_OPTION_FILE [ARGS]: run it in the environment of scripts/setup_env.sh.
#
# `X.yml ARGS` is short for `-opt X.yml ARGS`, and without an option file the default one is taken. An option file named
# relative to the current directory is found there, any other relative path is looked up from the checkout.
run_quantsr() {
    command=$1 default=$2
    shift 2
    case ${1-} in
    *.yml | *.yaml) set -- -opt "$@" ;;
    esac

    has_file=
    previous=
    count=$#
    for word in "$@"; do
        case $previous in
        -opt | --opt)
            if [ -f "$PWD/$word" ]; then word=$PWD/$word; fi
            ;;
        esac
        case $word in
        -opt | --opt | -opt=* | --opt=* | -h | --help) has_file=yes ;;
        esac
        previous=$word
        set -- "$@" "$word"
    done
    shift "$count"
    [ -n "$has_file" ] || set -- -opt "$default" "$@"

    python=$(sh "$root/scripts/setup_env.sh")
    # This checkout's code, also where the environment holds another copy of the package.
    PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
    cd "$root" || exit 1
    if [ "${NPROC:-1}" -gt 1 ]; then
        exec "$python" -m torch.distributed.run --standalone --nproc_per_node="$NPROC" -m quantsr "$command" "$@"
    fi
    exec "$python" -m quantsr "$command" "$@"
}
