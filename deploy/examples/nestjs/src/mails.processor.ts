import { setTimeout } from 'node:timers/promises';
import { OnQueueEvent, Processor, QueueEventsHost, QueueEventsListener, WorkerHost } from '@nestjs/bullmq';
import type { Job } from 'bullmq';
import { MAILS, type Mail } from './mails.js';

/** Sends the mails: a Worker, with two connections. */
@Processor(MAILS, { concurrency: 4 })
export class MailsProcessor extends WorkerHost {
  async process(job: Job<Mail>): Promise<string> {
    await setTimeout(job.data.takes ?? 10);
    return `sent to ${job.data.to}`;
  }
}

/** Hears what all processes have done: a QueueEvents, with one connection. */
@QueueEventsListener(MAILS)
export class MailsEvents extends QueueEventsHost {
  heard = 0;

  @OnQueueEvent('completed')
  completed(): void {
    this.heard += 1;
  }
}
