// Publish jobs to Paceline over RabbitMQ: java -cp JARS Publish.java COUNT PROVIDER [CALLBACK_URL] [ID_PREFIX]
// Persistent messages, a hundred at a time on their way to a confirm. AMQP_URL says where. Needs Java 17 and amqp-client:
// Debian's default-jdk-headless, librabbitmq-client-java, JARS=/usr/share/java/amqp-client.jar:/usr/share/java/slf4j-api.jar
import com.rabbitmq.client.*;
import java.util.concurrent.*;
class Publish {
    public static void main(String[] args) throws Exception {
        var prefix = args.length > 3 ? args[3] : "java-" + ProcessHandle.current().pid() + "-";
        var callback = args.length > 2 && !args[2].isEmpty() ? ",\"callback\":{\"url\":\"" + args[2] + "\"}" : "";
        var job = "{\"provider\":\"%s\",\"request\":{\"method\":\"POST\",\"path\":\"/v1/echo\",\"body\":{\"n\":%d}}%s}";
        var left = new ConcurrentSkipListSet<Integer>(); // the numbers of the jobs that are not confirmed yet
        for (int n = 0; n < Integer.parseInt(args[0]); n++) left.add(n);
        var factory = new ConnectionFactory();
        factory.setUri(System.getenv().getOrDefault("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f"));
        factory.setAutomaticRecoveryEnabled(false); // it would not publish again what is in doubt
        factory.setRequestedHeartbeat(10); // seconds, which bounds how long a connection takes to close
        while (!left.isEmpty()) try (var connection = factory.newConnection(); var channel = connection.createChannel()) {
            var sent = new ConcurrentSkipListMap<Long, Integer>(); // the broker's number of each, and ours
            channel.addReturnListener(returned -> sent.clear()); // no queue takes them; comes before the ack
            channel.addConfirmListener((tag, all) -> left.removeAll(sent.subMap(all ? 0 : tag, true, tag, true).values()),
                (tag, all) -> sent.subMap(all ? 0 : tag, true, tag, true).clear());
            for (channel.confirmSelect(); !left.isEmpty(); sent.clear()) {
                var batch = left.stream().limit(100).toList();
                for (int n : batch) {
                    sent.put(channel.getNextPublishSeqNo(), n);
                    var properties = MessageProperties.PERSISTENT_BASIC.builder().contentType("application/json");
                    channel.basicPublish("paceline.jobs", args[1], true, properties.messageId(prefix + n).build(),
                        job.formatted(args[1], n, callback).getBytes("UTF-8"));
                }
                if (!channel.waitForConfirms(10_000) || batch.stream().anyMatch(left::contains))
                    throw new java.io.IOException("refused by the broker, or no queue takes it");
            }
        } catch (java.io.IOException | TimeoutException | ShutdownSignalException doubt) {
            System.err.println("not confirmed, again in a second: " + doubt);
            Thread.sleep(1000); // the same messageId is the same job: publishing it again is safe
        }
        System.out.printf("%s jobs published and confirmed, %s0 to %2$s%d%n", args[0], prefix, Integer.parseInt(args[0]) - 1);
    }
}
