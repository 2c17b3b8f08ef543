"""Publishes reports with Zuul's own driver, as its scheduler does."""

import sys
import time

from zuul.driver.mqtt import MQTTDriver
from zuul.driver.mqtt.mqttconnection import MQTTConnection

port, qos, count, rate = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
connection = MQTTConnection(MQTTDriver(), "mqtt", {"driver": "mqtt", "server": "127.0.0.1", "port": port})
# The driver publishes for a scheduler only.
connection.sched = object()
connection.onLoad(None, None)
deadline = time.monotonic() + 30
while not connection.client.is_connected():
    assert time.monotonic() < deadline, "the driver did not connect"
    time.sleep(0.01)
started = time.monotonic()
for number in range(count):
    report = {"action": "success", "tenant": "acme", "pipeline": "gate", "project": "widgets", "change": number, "number": number, "pad": "x" * 1500}
    connection.publish(f"zuul/{number % 7}", report, qos, None)
    time.sleep(max(0, started + (number + 1) / rate - time.monotonic()))
deadline = time.monotonic() + 60
while connection.client._out_messages or connection.client.want_write():
    assert time.monotonic() < deadline, "not everything was acknowledged"
    time.sleep(0.05)
connection.onStop()
