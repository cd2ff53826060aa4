/** The queue. */
export const MAILS = 'mails';

/** What a job carries. */
export interface Mail {
  to: string;
  /** How long sending takes, in milliseconds. */
  takes?: number;
}
