#!/bin/sh
# Run the tests of the native engine, and damaged packed files through it, with AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   sh scripts/check_sanitizers.sh [ARGS of pytest]     default: tests/deploy/test_native*.py
#
# The kernels are compiled with the sanitizers, at -O1, in a temporary copy of the checkout. The first report of a sanitizer ends
# the run with a stack trace. Variables:
#   CC                       the compiler, gcc (default) or clang
#   QUANTSR_STRESS_SECONDS   time budget of the damaged files for each kind of network, default 60; 0 leaves them out
#   QUANTSR_STRESS_SEED      as in scripts/check.sh
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=$(sh "$root/scripts/setup_env.sh" --dev)
cc=${CC:-gcc}
command -v "$cc" >/dev/null || {
    echo "error: there is no compiler '$cc'; install gcc, or name one in CC" >&2
    exit 2
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
cd "$root"
cp -R quantsr tests scripts datasets options docs setup.py pyproject.toml README.md CHANGELOG.md LICENSE "$work"
cd "$work"
rm -f quantsr/deploy/native/kernels*.so
# the flags of setup.py, but for the level of optimization and the debugging information, which it strips
sed -i.old -e 's|"-O3",|"-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",|' \
    -e 's|\["-s"\]|["-fsanitize=address,undefined"]|' setup.py
echo "== $cc -O1 -fsanitize=address,undefined"
CC=$cc LDSHARED="$cc -shared" "$python" setup.py -q build_ext --inplace
nm -D quantsr/deploy/native/kernels.so | grep -q __asan_ || {
    echo "error: the kernels were not compiled with the sanitizers; see the compiler's messages above" >&2
    exit 1
}

# The libraries that must be loaded before Python's own.
preload=
for name in libasan.so libubsan.so libclang_rt.asan-x86_64.so libclang_rt.asan.so libstdc++.so.6; do
    file=$("$cc" -print-file-name="$name")
    case $file in /*) preload="$preload${preload:+ }$file" ;; esac
done
export PYTHONPATH="$work" PYTHONMALLOC=malloc OMP_NUM_THREADS=1
# Python frees little at its end, and reads of freed memory are found without a list of leaks.
export ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1:abort_on_error=0:handle_segv=1"
export UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1"
run() {
    echo "== pytest $*"
    LD_PRELOAD="$preload" "$python" -m pytest -p no:cacheprovider "$@"
}
[ $# -gt 0 ] || set -- tests/deploy/test_native*.py
run "$@"
[ "${QUANTSR_STRESS_SECONDS-60}" = 0 ] ||
    QUANTSR_STRESS_ENGINES=native run -m stress -rP --show-capture=stdout tests/stress/test_packed.py
