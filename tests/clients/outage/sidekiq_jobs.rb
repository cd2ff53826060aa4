# Sidekiq: a process with two threads that take jobs with BRPOP, and a sender.

require 'json'

JOURNAL = File.join(ENV.fetch('OUTAGE_FOLDER'), 'sidekiq.journal')
File.write(JOURNAL, '')
ENV['OUTAGE_JOURNAL'] = JOURNAL
require_relative 'sidekiq_worker'

def run
  File.readlines(JOURNAL).map(&:to_i)
end

def now
  Process.clock_gettime(Process::CLOCK_MONOTONIC)
end

service = spawn('sidekiq', '-r', File.join(__dir__, 'sidekiq_worker.rb'), '-q', 'outage', '-c', '2',
                in: File::NULL, out: :err)
Note.perform_async(-1)
sleep 0.1 while run.empty?
stopped = false
Thread.new { $stdin.gets; stopped = true }
$stdout.sync = true
puts 'ready'

sent = 0
acknowledged = []
errors = Hash.new(0)
last_error = 0.0
until stopped
  number = sent
  sent += 1
  begin
    Note.perform_async(number)
    acknowledged << number
  rescue Redis::BaseError, SystemCallError => error
    errors["#{error.class}: #{error.message}"[0, 100]] += 1
    last_error = now
  end
  sleep 0.05
end

deadline = now + 15
sleep 0.2 until now > deadline || (acknowledged - run).empty?
ended = Process.wait(service, Process::WNOHANG)
Process.kill(:KILL, service) unless ended
abort 'error: sidekiq ended' if ended
done = run.reject(&:negative?)
puts({ sent: sent, acknowledged: acknowledged.size, errors: errors, quiet: now - last_error, doubled: done.size - done.uniq.size,
       lost: (acknowledged - done).size, deaf: done.empty? || done.last < sent - 5, dropped: 0 }.to_json)
