#!/usr/bin/env bash
# Make M2D an upstream of your copy of s3prl, by links: bash superb/setup_s3prl.sh /your/s3prl
# The folder is a clone, or the site-packages that pip installed s3prl into.
set -euo pipefail
unset CDPATH
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && exit ;;
esac
[[ $# -eq 1 ]] || {
    echo "usage: bash superb/setup_s3prl.sh S3PRL_FOLDER (the clone or the site-packages, which holds s3prl/upstream)" >&2
    exit 2
}
package=$1/s3prl
[[ -f $package/upstream/interfaces.py ]] || {
    echo "$1: no s3prl/upstream/interfaces.py in it. Clone https://github.com/s3prl/s3prl.git first" >&2
    exit 1
}

mkdir -p -- "$package/upstream/m2d"
for file in __init__.py expert.py hubconf.py; do
    ln -sfn -- "$root/superb/upstream/m2d/$file" "$package/upstream/m2d/$file"
done
ln -sfn -- "$root" "$package/upstream/m2d/m2d"

# s3prl imports names that later torchaudio, huggingface_hub and torch no longer have.
ln -sfn -- "$root/superb/upstream/m2d/compat.py" "$package/m2d_compat.py"
line='from . import m2d_compat  # by M2D'
if ! grep -qxF "$line" "$package/__init__.py"; then
    printf '%s\n%s\n' "$line" "$(cat -- "$package/__init__.py")" >"$package/__init__.py.m2d"
    mv -- "$package/__init__.py.m2d" "$package/__init__.py"
fi

# hub.py of recent versions names every upstream in a line of its own.
line='from s3prl.upstream.m2d.hubconf import *'
if grep -q '^from s3prl\.upstream\..*hubconf import' "$package/hub.py" && ! grep -qxF "$line" "$package/hub.py"; then
    printf '\n%s\n' "$line" >>"$package/hub.py"
fi
echo "M2D is an upstream of $package: -u m2d, -u m2d_local, -u m2d_calcnorm"
