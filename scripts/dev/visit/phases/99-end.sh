# shellcheck shell=bash
step stop-last play playbooks/stop.yml
