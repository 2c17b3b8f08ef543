"""Publishes numbered reports with paho, 1.6 or 2.x, and prints the number of each as it is acknowledged.

What paho does with a connection that breaks is paho's: it reconnects by itself, and sends again what was not acknowledged.
"""

import argparse
import json
import re
import sys
import threading
import time

import paho.mqtt.client as mqtt

arguments = argparse.ArgumentParser()
arguments.add_argument("--port", type=int, required=True)
arguments.add_argument("--protocol", choices=["3.1.1", "5"], default="3.1.1")
arguments.add_argument("--qos", type=int, default=1)
arguments.add_argument("--client-id", default="")
arguments.add_argument("--count", type=int, default=1)
arguments.add_argument("--topics", type=int, default=1)
arguments.add_argument("--prefix", default="paho")
arguments.add_argument("--retain", action="store_true")
arguments.add_argument("--rate", type=float, default=0)
arguments.add_argument("--user")
arguments.add_argument("--password")
arguments.add_argument("--ca")
arguments.add_argument("--cert")
arguments.add_argument("--key")
# Each PUBLISH that is sent, also again, by its packet identifier.
arguments.add_argument("--sends")
options = arguments.parse_args()

level = {"3.1.1": mqtt.MQTTv311, "5": mqtt.MQTTv5}[options.protocol]
settings = {"client_id": options.client_id, "protocol": level}
if options.protocol == "3.1.1":
    settings["clean_session"] = not options.client_id
if hasattr(mqtt, "CallbackAPIVersion"):
    settings["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION2
client = mqtt.Client(**settings)
if options.user:
    client.username_pw_set(options.user, options.password)
if options.ca:
    client.tls_set(options.ca, certfile=options.cert, keyfile=options.key)
client.reconnect_delay_set(min_delay=1, max_delay=1)
client.max_queued_messages_set(0)

lock = threading.Condition()
numbers, acknowledged = {}, set()


def on_publish(client, userdata, mid, *rest):
    with lock:
        acknowledged.add(mid)
        lock.notify_all()


client.on_publish = on_publish
if options.sends:
    sends = open(options.sends, "w", buffering=1)

    def on_log(client, userdata, level, text):
        sent = re.search(r"Sending PUBLISH \(d\d, q\d, r\d, m(\d+)\)", text)
        if sent:
            print(sent[1], file=sends)

    client.on_log = on_log


def connect():
    arguments = {"host": "127.0.0.1", "port": options.port, "keepalive": 60}
    if options.protocol == "5":
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        arguments.update(clean_start=not options.client_id, properties=properties if options.client_id else None)
    client.connect(**arguments)


connect()
client.loop_start()
started = time.monotonic()
for number in range(options.count):
    payload = json.dumps({"action": "success", "tenant": "t", "pipeline": "p", "number": number, "pad": "x" * 200})
    info = client.publish(f"{options.prefix}/{number % options.topics}", payload, qos=options.qos, retain=options.retain)
    with lock:
        numbers[info.mid] = number
    if options.rate:
        time.sleep(max(0, started + (number + 1) / options.rate - time.monotonic()))

deadline, said = time.monotonic() + 150, set()
while time.monotonic() < deadline:
    with lock:
        lock.wait(0.2)
        fresh = acknowledged - said
    for mid in fresh:
        if mid in numbers:
            print(numbers[mid])
            said.add(mid)
    if len(said) == options.count:
        break
client.disconnect()
client.loop_stop()
sys.stdout.flush()
sys.exit(0 if len(said) == options.count else 1)
