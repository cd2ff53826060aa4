# What Sidekiq runs.

require 'sidekiq'

class Note
  include Sidekiq::Worker
  sidekiq_options queue: 'outage'

  def perform(number)
    File.write(ENV.fetch('OUTAGE_JOURNAL'), "#{number}\n", mode: 'a')
  end
end
