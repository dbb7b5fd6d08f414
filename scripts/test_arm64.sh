#!/bin/sh
# Test the native engine's ARM64 kernels on an x86-64 Debian or Ubuntu: an ARM64 Python in qemu's user mode builds the package's wheel, which
# cross-compiles the kernels, upscales a picture, and compares what every instruction set computes, bit for bit, with
# what the integer reference and this machine's kernels gave (tests/deploy/recorded.py).
#
#   sh scripts/test_arm64.sh [--all] [FOLDER]
#
#   --all    all networks of recorded.py, instead of those that together run every kernel
#   FOLDER   keeps what was downloaded and recorded; default: build/arm64
#
# Tools that are missing are installed with apt-get, as root or through sudo. A FOLDER that is there is used again; the package is always
# installed anew. The time that this takes says nothing about the speed of ARM processors.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
all=
[ "${1-}" != --all ] || {
    all=--all
    shift
}
folder=${1-$root/build/arm64}
fail() {
    echo "error: $*" >&2
    exit 2
}
step() { echo "== $* ($(date +%T))"; }

command -v apt-get >/dev/null || fail "there is no apt-get; this test needs Debian or Ubuntu on x86-64"
[ "$(uname -m)" = x86_64 ] || fail "this is no x86-64 machine; on ARM64 run the tests themselves: sh scripts/check.sh"
. /etc/os-release
mkdir -p "$folder"
folder=$(CDPATH='' cd -- "$folder" && pwd)

tools=
for pair in qemu-aarch64:qemu-user aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu git:git; do
    command -v "${pair%%:*}" >/dev/null || tools="$tools ${pair#*:}"
done
[ -e /usr/aarch64-linux-gnu/include/stdio.h ] || tools="$tools libc6-dev-arm64-cross"
if [ -n "$tools" ]; then
    step "apt-get install$tools"
    as_root=
    [ "$(id -u)" = 0 ] || as_root=sudo
    $as_root apt-get update -q
    # Another installation, such as the system's own updates, is waited for.
    # shellcheck disable=SC2086
    $as_root apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=600 $tools
fi

# --- an ARM64 Python, in a folder of its own ----------------------------------------------------------------------------------

system=$folder/system
if [ ! -e "$folder/system.done" ]; then
    step "ARM64 Python of $ID $VERSION_CODENAME"
    case $ID in
    debian) mirror=http://deb.debian.org/debian keyring=debian-archive-keyring components=main ;;
    ubuntu) mirror=http://ports.ubuntu.com/ubuntu-ports keyring=ubuntu-archive-keyring components='main universe' ;;
    *) fail "this is $ID; this test needs Debian or Ubuntu" ;;
    esac
    rm -rf "$system" "$folder/apt"
    mkdir -p "$system" "$folder/apt/lists/partial" "$folder/apt/archives/partial"
    : >"$folder/apt/status"
    echo "deb [arch=arm64 signed-by=/usr/share/keyrings/$keyring.gpg] $mirror $VERSION_CODENAME $components" >"$folder/apt/sources.list"
    get() {
        apt-get -q -o Dir::State="$folder/apt" -o Dir::State::Lists="$folder/apt/lists" -o Dir::State::status="$folder/apt/status" \
            -o Dir::Cache="$folder/apt" -o Dir::Etc::SourceList="$folder/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
            -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User= "$@" >"$folder/apt/log" 2>&1 ||
            fail "apt-get $1 failed: $(grep -m 1 '^E:' "$folder/apt/log")"
    }
    get update
    # libstdc++ is what wheels of numpy and OpenCV need
    get install -y --download-only --no-install-recommends python3-pip libstdc++6 libgomp1
    for package in "$folder"/apt/archives/*.deb; do dpkg -x "$package" "$system"; done
    [ -e "$system/lib" ] || ln -s usr/lib "$system/lib"
    rm -f "$system"/usr/lib/python3*/EXTERNALLY-MANAGED
    touch "$folder/system.done"
fi
emulated=$(echo "$system"/usr/bin/python3.[0-9]*)

# Starts itself again where Python starts a child.
mkdir -p "$folder/bin"
cat >"$folder/bin/python3" <<EOF
#!/bin/sh
export PYTHONHOME="$system/usr" PIP_ROOT_USER_ACTION=ignore
exec qemu-aarch64 -cpu "\${ARM64_CPU:-max}" -L "$system" -0 "\$0" "$emulated" "\$@"
EOF
chmod +x "$folder/bin/python3"

# --- what is expected ---------------------------------------------------------------------------------------------------------

python=$(sh "$root/scripts/setup_env.sh" --dev)
cd "$root"
step "recording"
rm -rf "$folder/recorded"
# shellcheck disable=SC2086
"$python" -m tests.deploy.recorded "$folder/recorded" $all
"$python" -c '
import sys, cv2
from tests.deploy.native import picture
cv2.imwrite(sys.argv[1], picture(20, 24))' "$folder/picture.png"
"$python" -m quantsr upscale "$folder/picture.png" --model quantsr_c_small_x3_w4a6 --engine native -o "$folder/expected.png" --force

# --- the package --------------------------------------------------------------------------------------------------------------

step "packages"
unset PYTHONPATH VIRTUAL_ENV # of this machine
rm -rf "$folder/source" "$folder/check"
mkdir -p "$folder/source" "$folder/check"
git ls-files -z | xargs -0 cp --parents -t "$folder/source"
cp -r "$folder/source/tests" "$folder/source/pyproject.toml" "$folder/check" # not quantsr/: the installed package is tested
cd "$folder/check"
# Packages are installed by this machine's pip: an emulated one is many times slower, and waits for ever for a build that has ended.
install() {
    "$python" -m pip install -q --upgrade --target "$system/usr/lib/python3/dist-packages" --only-binary :all: --implementation cp \
        --python-version "${emulated##*python}" "$@"
}
if [ ! -e "$folder/packages.done" ]; then
    packages=$("$python" -c 'import importlib.metadata as m; print(*(r for r in m.requires("quantsr") if "extra" not in r), sep="\n")')
    platforms=
    for minor in $(seq 17 "$(getconf GNU_LIBC_VERSION | cut -d . -f 2)"); do
        platforms="$platforms --platform manylinux_2_${minor}_aarch64"
    done
    # shellcheck disable=SC2086
    install --platform manylinux2014_aarch64 $platforms $packages pytest "setuptools>=77.0.3" "setuptools-scm>=8.1"
    touch "$folder/packages.done"
fi
step "wheel"
mkdir "$folder/source/wheel"
(cd "$folder/source" && QUANTSR_REQUIRE_KERNELS=1 "$folder/bin/python3" -c '
from setuptools import build_meta
build_meta.build_wheel("wheel")' >wheel/log 2>&1) || fail "the wheel was not built: $folder/source/wheel/log"
install --no-deps --platform linux_aarch64 "$folder"/source/wheel/*.whl

# --- tests --------------------------------------------------------------------------------------------------------------------

best() { # processor, the instruction set that it should choose
    found=$(ARM64_CPU=$1 "$folder/bin/python3" -m quantsr --version | tail -n 1)
    echo "$1: $found"
    case $found in
    "engines: native ($2)"*) ;;
    *) fail "$1 should choose $2" ;;
    esac
}
step "instruction sets of processors"
best cortex-a53 neon
best neoverse-n1 neon_dotprod
best max neon_i8mm

step "quantsr upscale"
"$folder/bin/python3" -m quantsr upscale "$folder/picture.png" --model quantsr_c_small_x3_w4a6 --engine native -o "$folder/found.png" --force
cmp "$folder/expected.png" "$folder/found.png"

export QUANTSR_RECORDED="$folder/recorded" OMP_NUM_THREADS=1
recorded() { # processor, further arguments of pytest
    cpu=$1
    shift
    step "recorded networks, $cpu"
    ARM64_CPU=$cpu "$folder/bin/python3" -m pytest -q -p no:cacheprovider "$@" tests/deploy/test_recorded.py
}
# Of processors without the later extensions an instruction of those would end the process.
recorded cortex-a53
recorded neoverse-n1 -k neon_dotprod
recorded max -k neon_i8mm
[ -z "$all" ] || recorded max -k "plain or neon-"
step "all tests passed"
