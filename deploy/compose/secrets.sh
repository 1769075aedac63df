#!/bin/sh
# Makes the passwords of docker-compose.yml, once: files in ./secrets, each for the containers that name it.
set -eu
cd "$(dirname "$0")/../.."
if [ -d secrets ]; then
  echo "secrets/ exists already, and stays as it is: the database has its password."
  exit 0
fi
password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
postgres=$(password)
valkey=$(password)
mkdir -m 700 secrets # for others on this host; a container that mounts one of the files must be able to read it
printf '%s' "$postgres" >secrets/postgres_password
printf 'postgresql://millrace:%s@postgres/millrace' "$postgres" >secrets/database_url
printf '%s' "$valkey" >secrets/valkey_password
printf 'redis://:%s@valkey:6379/0' "$valkey" >secrets/redis_url
printf 'requirepass %s\nappendonly yes\nmaxmemory-policy noeviction\ndir /data\n' "$valkey" >secrets/valkey.conf
chmod 644 secrets/*
echo "secrets/ has the passwords. Start with: docker compose up"
