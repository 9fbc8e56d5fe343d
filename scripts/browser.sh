#!/usr/bin/env bash
# Uses the report's page as a person does, in headless Chromium: sorts, filters, points, walks by keyboard, prints.
# Usage: scripts/browser.sh [--moescope PROGRAM] [--shots DIR] [TEST...]    (default build/cpu/experiments/moescope)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup_packages "the report's figures" libjs-chart.js
setup_packages "the report in a browser" chromium chromium-driver python3-selenium

exec /usr/bin/python3 tests/browser/report_test.py "$@"
