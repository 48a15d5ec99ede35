// Publish jobs to Paceline over RabbitMQ: go run publish.go COUNT PROVIDER [CALLBACK_URL ID_PREFIX]
// Persistent messages, each confirmed before the next leaves. AMQP_URL says where. Needs rabbitmq/amqp091-go.
package main

import "fmt"
import "os"
import "time"
import amqp "github.com/rabbitmq/amqp091-go"

func main() {
	args, count, n := append(os.Args, "", fmt.Sprintf("go-%d-", os.Getpid())), 0, 0
	fmt.Sscan(args[1], &count)
	callback := map[bool]string{true: fmt.Sprintf(`, "callback": {"url": %q}`, args[3])}[args[3] != ""]
	publish := func() error { // job n and those after it; it ends when all are confirmed, or one is in doubt
		connection, err := amqp.Dial(os.Getenv("AMQP_URL")) // a broker that falls silent is given up after 30 s
		if err != nil {
			return err
		}
		defer connection.Close()
		channel, err := connection.Channel()
		if err != nil {
			return err
		}
		returns, confirms := channel.NotifyReturn(make(chan amqp.Return, 1)), channel.NotifyPublish(make(chan amqp.Confirmation, 1))
		for err = channel.Confirm(false); err == nil && n < count; n++ { // the same id is the same job: again is safe
			body := []byte(fmt.Sprintf(`{"request": {"method": "POST", "path": "/v1/echo", "body": {"n": %d}}%s}`, n, callback))
			job := amqp.Publishing{MessageId: args[4] + fmt.Sprint(n), ContentType: "application/json", DeliveryMode: amqp.Persistent, Body: body}
			if err := channel.Publish("paceline.jobs", args[2], true, false, job); err != nil || !(<-confirms).Ack || len(returns) > 0 {
				return fmt.Errorf("lost, refused, or no queue takes it: %v", err)
			}
		}
		return err
	}
	for err := publish(); err != nil; err = publish() {
		fmt.Fprintln(os.Stderr, "not confirmed, again in a second:", err)
		time.Sleep(time.Second)
	}
	fmt.Printf("%d jobs published and confirmed, %s0 to %[2]s%[3]d\n", count, args[4], count-1)
}
