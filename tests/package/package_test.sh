#!/usr/bin/env bash
# Installs the build tree, then builds and runs consumers from the installed tree only; checks what libmuster exports.
set -euo pipefail
build=$1 cxx=$2 sanitize=$3
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
flags=()
[ -z "$sanitize" ] || flags=("-fsanitize=$sanitize")

cmake --install "$build" --prefix "$work/prefix" >"$work/install.log" || { cat "$work/install.log"; fail "cmake --install"; }
lib=$(dirname "$(find "$work/prefix" -name libmuster.so)")

exported=$(nm -D --defined-only "$lib/libmuster.so" | awk '{print $3}' | sed 's/@.*//')
foreign=$(grep -v '^muster_' <<<"$exported" || true)
[ -z "$foreign" ] || fail "libmuster.so exports symbols that are not muster_*: $foreign"
declared=$(grep -oE '\bmuster_[a-z_]+\(' "$here/../../include/muster/muster.h" | tr -d '(' | sort -u)
for name in $declared; do grep -qx "$name" <<<"$exported" || fail "muster.h declares $name, libmuster.so does not export it"; done
if grep -E 'libhdf5|libucp|libmpi|libcuda|libnccl|libssl' < <(ldd "$lib/libmuster.so"); then fail "libmuster.so links what belongs into a module"; fi

export PKG_CONFIG_PATH=$lib/pkgconfig LD_LIBRARY_PATH=$lib
read -ra cflags <<<"$(pkg-config --cflags --libs muster)"
"${CC:-gcc}" -std=c11 -Wall -Wextra -Werror -pedantic "${flags[@]}" "$here/consumer.c" "${cflags[@]}" -o "$work/consumer_c"
"$work/consumer_c" || fail "the C consumer ended with $?"

# The command finds its modules from where it is installed, and not from where it is called.
(
  cd "$work"
  unset MUSTER_MODULE_PATH
  PATH=$work/prefix/bin:$PATH
  if muster info | grep missing | grep -v "module cuda"; then fail "the installed muster does not find its modules"; fi
  muster run --quiet -- "$work/consumer_c" || fail "the installed muster run ended with $?"
)

mkdir "$work/cpp"
cat >"$work/cpp/CMakeLists.txt" <<CMAKE
cmake_minimum_required(VERSION 3.25)
project(consumer CXX)
find_package(muster 0.1 REQUIRED)
add_executable(consumer $here/consumer.cpp)
set_target_properties(consumer PROPERTIES CXX_STANDARD 17 CXX_EXTENSIONS OFF)
target_compile_options(consumer PRIVATE -Wall -Wextra -Werror ${flags[*]})
target_link_options(consumer PRIVATE ${flags[*]})
target_link_libraries(consumer PRIVATE muster::muster)
CMAKE
cmake -S "$work/cpp" -B "$work/cpp/build" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_CXX_COMPILER="$cxx" >"$work/cpp.log" 2>&1 &&
  cmake --build "$work/cpp/build" >>"$work/cpp.log" 2>&1 || { cat "$work/cpp.log"; fail "building the C++17 consumer"; }
"$work/cpp/build/consumer" || fail "the C++17 consumer ended with $?"

hdf5=/usr/include/hdf5/serial
for pie in pie no-pie; do
  "$cxx" -std=c++17 "${flags[@]}" "-f$pie" "-$pie" -I"$hdf5" "$here/clash.cpp" "${cflags[@]}" -lhdf5_serial -lssl -lcrypto -o "$work/clash"
  rm -rf "$work/data" && mkdir "$work/data"
  "$work/clash" "$work/data" || fail "the program ($pie) with its own HDF5 and OpenSSL ended with $?"
done
if command -v h5dump >/dev/null; then
  shard=$(find "$work/data/ckpt" -name 'shard-*.h5' | head -n 1)
  [ -n "$shard" ] && h5dump -H "$shard" >/dev/null || fail "no readable shard in $work/data/ckpt"
fi
echo "package_test: exports, pkg-config, find_package and the clash program are right"
