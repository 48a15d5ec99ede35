#!/usr/bin/env python3
"""Ask for an API call over RabbitMQ and wait for its answer: rpc.py PROVIDER PATH [ID]

Prints the completion as JSON. AMQP_URL says where. Needs pika.
"""
import json, os, sys, uuid
import pika

provider, path = sys.argv[1], sys.argv[2]
job_id = sys.argv[3] if len(sys.argv) > 3 else str(uuid.uuid4())
connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")))
channel = connection.channel()
channel.confirm_delivery()  # basic_publish returns only when the broker has the job safe
replies = channel.queue_declare("", exclusive=True).method.queue  # gone with this connection: nobody waits any more
answer = None

def on_reply(channel, method, properties, body):
    global answer
    channel.basic_ack(method.delivery_tag)
    if properties.correlation_id == job_id:  # the same answer may come twice, under the same message_id
        answer = json.loads(body)

channel.basic_consume(replies, on_reply)
properties = pika.BasicProperties(message_id=job_id, correlation_id=job_id, reply_to=replies,
                                  content_type="application/json", delivery_mode=2)
channel.basic_publish("paceline.jobs", provider, json.dumps({"request": {"path": path}}).encode(), properties)
while answer is None:
    connection.process_data_events(time_limit=1)  # as long as limits, retries and deadline of the job take
print(json.dumps(answer))
connection.close()
sys.exit(0 if answer["type"] == "job.succeeded" else 1)
