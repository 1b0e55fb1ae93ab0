#!/bin/sh
# Builds the images that the examples use from Debian packages, without docker and without a registry:
# one OCI layout for each below the directory given. Skips what is up to date. Needs apt, dpkg and python3.
#
#   examples/images/build.sh DIRECTORY [NAME...]      rhumb images import DIRECTORY/NAME
set -eu
exec python3 "$(dirname "$0")/build.py" "$@"
