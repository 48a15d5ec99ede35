#!/usr/bin/env php
<?php // Publish jobs to Paceline over RabbitMQ: php publish.php COUNT PROVIDER [CALLBACK_URL] [ID_PREFIX]
// Persistent messages, a hundred at a time on their way to a confirm. AMQP_URL says where.
// Needs php-amqplib: Debian's php-cli and php-amqplib, or Composer's, with vendor/autoload.php in place of the next line.
require_once 'PhpAmqpLib/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;

[, $count, $provider, $callback, $prefix] = $argv + [3 => '', 4 => 'php-' . getmypid() . '-'];
$left = []; // by id: the jobs that are not confirmed yet
for ($n = 0; $n < $count; $n++) {
    $job = ['provider' => $provider, 'request' => ['method' => 'POST', 'path' => '/v1/echo', 'body' => ['n' => $n]]];
    $job += $callback ? ['callback' => ['url' => $callback]] : [];
    $properties = ['message_id' => $prefix . $n, 'content_type' => 'application/json', 'delivery_mode' => 2];
    $left[$prefix . $n] = new AMQPMessage(json_encode($job), $properties);
}
while ($left) { // the same message_id is the same job: publishing it again after a doubt is safe
    try {
        $at = array_map('urldecode', parse_url(getenv('AMQP_URL') ?: 'amqp://guest:guest@127.0.0.1:5672/%2f'));
        $connection = new AMQPStreamConnection($at['host'], $at['port'], $at['user'], $at['pass'], substr($at['path'], 1));
        $channel = $connection->channel();
        $channel->confirm_select();
        $channel->set_ack_handler(function ($message) use (&$left) { unset($left[$message->get('message_id')]); });
        $channel->set_return_listener(fn () => throw new RuntimeException('no queue takes it')); // comes before its ack
        while ($batch = array_slice($left, 0, 100, true)) {
            foreach ($batch as $message) {
                $channel->basic_publish($message, 'paceline.jobs', $provider, mandatory: true);
            }
            $channel->wait_for_pending_acks_returns(10); // seconds between two of them, at most
            $refused = count(array_intersect_key($batch, $left));
            $refused === 0 || throw new RuntimeException("the broker refused $refused jobs");
        }
    } catch (Exception $doubt) {
        fwrite(STDERR, 'not confirmed, again in a second: ' . get_class($doubt) . ' ' . $doubt->getMessage() . "\n");
        sleep(1);
    }
}
echo "$count jobs published and confirmed, {$prefix}0 to $prefix", $count - 1, "\n";
