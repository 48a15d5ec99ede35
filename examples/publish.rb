# Publish jobs to Paceline over RabbitMQ: ruby publish.rb COUNT PROVIDER [CALLBACK_URL] [ID_PREFIX]
# Persistent messages, a hundred at a time on their way to a confirm. AMQP_URL says where. Needs bunny (Debian: ruby-bunny).
require "bunny"
require "json"

COUNT, PROVIDER, PREFIX = Integer(ARGV[0]), ARGV[1], ARGV.fetch(3, "rb-#{Process.pid}-")
CALLBACK = ARGV[2].to_s.empty? ? {} : { callback: { url: ARGV[2] } }

def publish_all(left) # without Bunny's own recovery: it takes what was unconfirmed when the connection broke for confirmed
  connection = Bunny.new(ENV.fetch("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f"), log_level: Logger::FATAL,
                         automatically_recover: false, recover_from_connection_close: false, continuation_timeout: 10_000)
  channel, returned = connection.start.create_channel.tap(&:confirm_select), []
  exchange = channel.exchange("paceline.jobs", passive: true).on_return { |_, message, _| returned << message.message_id }
  until left.empty?
    batch, first = left.first(100), channel.next_publish_seq_no
    options = { routing_key: PROVIDER, mandatory: true, persistent: true, content_type: "application/json" }
    batch.each do |n|
      job = { provider: PROVIDER, request: { method: "POST", path: "/v1/echo", body: { n: n } }, **CALLBACK }
      exchange.publish(JSON.generate(job), message_id: "#{PREFIX}#{n}", **options)
    end
    channel.wait_for_confirms # Timeout::Error after 10 s
    doubt = batch.select.with_index { |n, i| channel.nacked_set.include?(first + i) || returned.include?("#{PREFIX}#{n}") }
    left.replace(left - (batch - doubt))
    raise "refused by the broker, or no queue takes them: #{doubt.size} jobs" unless doubt.empty?
  end
ensure
  connection&.close
end

left = (0...COUNT).to_a # the same message_id is the same job: publishing it again after a doubt is safe
until left.empty?
  begin # in a thread of its own: Bunny raises a lost connection in the thread that opened it, whatever it is doing
    Thread.new { publish_all(left) }.tap { |thread| thread.report_on_exception = false }.join
  rescue StandardError => error
    warn "not confirmed, again in a second: #{error.inspect}"
    sleep 1
  end
end
puts "#{COUNT} jobs published and confirmed, #{PREFIX}0 to #{PREFIX}#{COUNT - 1}"
