#!/bin/sh
# Builds the documentation site into the folder `site`, and checks its links: sh scripts/build_docs.sh
# It needs the extra `docs` (pip install ".[docs]"), and neither torch nor the kernels. PYTHON names another interpreter.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
"$python" -m mkdocs build --strict --clean --site-dir site "$@"
"$python" scripts/check_site.py site
echo "the site is in $(pwd)/site"
