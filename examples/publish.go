// Publish jobs to Paceline over RabbitMQ: go run publish.go COUNT PROVIDER [CALLBACK_URL] [ID_PREFIX]
// Persistent messages, a hundred at a time on their way to a confirm. AMQP_URL says where.
// Needs github.com/rabbitmq/amqp091-go: by go get in a module, or Debian's golang-go and
// golang-github-rabbitmq-amqp091-go-dev, with GO111MODULE=off GOPATH=/usr/share/gocode.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// publish returns how many of the jobs, from the first on, the broker has confirmed when it is done or in doubt.
func publish(provider string, jobs []amqp.Publishing) (confirmed int, err error) {
	connection, err := amqp.Dial(os.Getenv("AMQP_URL"))
	if err != nil {
		return 0, err
	}
	defer connection.Close()
	channel, err := connection.Channel()
	if err != nil {
		return 0, err
	}
	confirms := channel.NotifyPublish(make(chan amqp.Confirmation, 100))
	returns, err := channel.NotifyReturn(make(chan amqp.Return, 100)), channel.Confirm(false)
	for sent := 0; confirmed < len(jobs) && err == nil; confirmed++ {
		for ; sent < len(jobs) && sent < confirmed+100 && err == nil; sent++ {
			err = channel.PublishWithContext(context.Background(), "paceline.jobs", provider, true, false, jobs[sent])
		}
		select {
		case confirm := <-confirms: // in the order of publishing; without Ack too when the connection is lost
			if !confirm.Ack || len(returns) > 0 {
				return confirmed, errors.New("lost, refused, or no queue takes it")
			}
		case <-time.After(10 * time.Second):
			return confirmed, errors.New("no confirm within 10 s")
		}
	}
	return confirmed, err
}

func main() {
	args := []string{"", "0", "", "", fmt.Sprintf("go-%d-", os.Getpid())}
	copy(args, os.Args)
	count, _ := strconv.Atoi(args[1])
	jobs := make([]amqp.Publishing, count)
	for n := range jobs {
		request := map[string]any{"method": "POST", "path": "/v1/echo", "body": map[string]int{"n": n}}
		job := map[string]any{"provider": args[2], "request": request}
		if args[3] != "" {
			job["callback"] = map[string]string{"url": args[3]}
		}
		body, _ := json.Marshal(job)
		id := args[4] + strconv.Itoa(n) // the same id is the same job: publishing it again after a doubt is safe
		jobs[n] = amqp.Publishing{MessageId: id, ContentType: "application/json", DeliveryMode: amqp.Persistent, Body: body}
	}
	for done := 0; done < count; {
		confirmed, err := publish(args[2], jobs[done:])
		if done += confirmed; err != nil {
			fmt.Fprintln(os.Stderr, "not confirmed, again in a second:", err)
			time.Sleep(time.Second)
		}
	}
	fmt.Printf("%d jobs published and confirmed, %s0 to %s%d\n", count, args[4], args[4], count-1)
}
