import { BullModule } from '@nestjs/bullmq';
import { Module } from '@nestjs/common';
import { MAILS } from './mails.js';
import { MailsController } from './mails.controller.js';
import { MailsEvents, MailsProcessor } from './mails.processor.js';

@Module({
  imports: [
    // The address of redbouncer. Nothing else knows of it.
    BullModule.forRoot({
      connection: { url: process.env.REDIS_URL ?? 'redis://127.0.0.1:6380' },
      prefix: process.env.QUEUE_PREFIX ?? 'bull',
    }),
    BullModule.registerQueue({ name: MAILS }),
  ],
  controllers: [MailsController],
  providers: [MailsProcessor, MailsEvents],
})
export class AppModule {}
