import { InjectQueue } from '@nestjs/bullmq';
import { Body, Controller, Get, Post } from '@nestjs/common';
import type { Queue } from 'bullmq';
import { MAILS, type Mail } from './mails.js';
import { MailsEvents } from './mails.processor.js';

@Controller('mails')
export class MailsController {
  constructor(
    @InjectQueue(MAILS) private readonly queue: Queue<Mail>,
    private readonly events: MailsEvents,
  ) {}

  /** Adds a mail to the queue. */
  @Post()
  async add(@Body() mail: Mail): Promise<{ id: string | undefined }> {
    const job = await this.queue.add('send', mail);
    return { id: job.id };
  }

  /** How many mails wait, are being sent and are sent, and how many of the last this process has heard of. */
  @Get()
  async counts(): Promise<Record<string, number>> {
    return { ...(await this.queue.getJobCounts('waiting', 'active', 'completed', 'failed')), heard: this.events.heard };
  }
}
