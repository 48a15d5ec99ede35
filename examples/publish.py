#!/usr/bin/env python3
"""Publish jobs to Paceline over RabbitMQ: publish.py COUNT PROVIDER [CALLBACK_URL] [ID_PREFIX]

Persistent messages, each confirmed by the broker before the next leaves. AMQP_URL says where. Needs pika.
"""
import json, os, sys, time
import pika

count, provider = int(sys.argv[1]), sys.argv[2]
callback = sys.argv[3] if len(sys.argv) > 3 else None
prefix = sys.argv[4] if len(sys.argv) > 4 else f"py-{os.getpid()}-"
parameters = pika.URLParameters(os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f"))
parameters.heartbeat = 10  # seconds: a broker that says nothing for two of them is given up

def open_channel():
    channel = pika.BlockingConnection(parameters).channel()
    channel.confirm_delivery()  # from here on basic_publish returns only when the broker has the message safe
    return channel

def publish(channel, number):
    job = {"provider": provider, "request": {"method": "POST", "path": "/v1/echo", "body": {"n": number}}}
    if callback:
        job["callback"] = {"url": callback}
    properties = pika.BasicProperties(message_id=f"{prefix}{number}", content_type="application/json", delivery_mode=2)
    while True:  # the same message_id is the same job: publishing it again after a doubt is safe
        try:
            channel = channel or open_channel()
            channel.basic_publish("paceline.jobs", provider, json.dumps(job).encode(), properties, mandatory=True)
            return channel
        except pika.exceptions.AMQPError as error:  # lost, refused (NackError), or no queue takes it (UnroutableError)
            print(f"not confirmed, again in a second: {error!r}", file=sys.stderr)
            channel = channel if channel and channel.is_open else None
            time.sleep(1)

channel = None
for number in range(count):
    channel = publish(channel, number)
print(f"{count} jobs published and confirmed, {prefix}0 to {prefix}{count - 1}")
