//! Sequences that showed a fault once, cut down, each with what was wrong. They are played on every server.

/// What was wrong, and the sequence.
pub(crate) const FOUND: &[(&str, &str)] = &[
    (
        "a timeout that only the server can read let the call wait for ever, where its client had written before",
        "clients 2 3\n1: SET s1 v\n0: BLPOP l1 0\n1: BLPOP l1 x\n",
    ),
    (
        "on a lease an inline request with unbalanced quotes overtook, and lost, the reply before it",
        "clients 3\n0: WATCH s1\n0: raw\"*1\\r\\n$0\\r\\n\\r\\n\" | raw\"ECHO \\\"a\\r\\n\"\n",
    ),
    (
        "the error of a database that there is not was withheld, because it had a weak password's letters in it",
        "clients 2\n0: HELLO 3 AUTH default x\n0: SELECT 16\n",
    ),
    (
        "a SELECT that cannot be right was refused inside MULTI, where it is queued",
        "clients 3\n0: MULTI | SELECT x | SELECT 99 | SET s1 v | EXEC | GET s1\n",
    ),
    (
        "EXEC of a RESP2 subscriber was refused without EXECABORT",
        "clients 2\n0: SUBSCRIBE news\n0: EXEC\n0: CLIENT NOSUCH\n",
    ),
    ("HELLO took a number with a leading zero", "clients 2\n0: HELLO 03\n0: HELLO +3\n0: HELLO 3\n"),
    (
        "CLIENT UNBLOCK and KILL were judged by our own list of words",
        "clients 2 3\n0: CLIENT UNBLOCK 1 x y | CLIENT KILL USER nosuch | CLIENT KILL MAXAGE x | CLIENT KILL ID {id:1}\n",
    ),
    (
        "another name of SELECT did not last before Redis 6.2, so that data went to the old database",
        "clients 2 with renames\n0: XSELECT 1 | SET s1 v\n0: DBSIZE | GET s1\n",
    ),
    (
        "without a hub a blocking call beside a lease was tried in the database that was selected before the lease",
        "clients 3 2\n0: GET s1\n0: CLIENT TRACKING on\n0: SELECT 2\n1: SET s1 v\n0: BLPOP s1 0.01\n",
    ),
    (
        "a client whose tracking began in a transaction was not told of FLUSHDB in the same transaction",
        "clients 3 3\n1: MULTI | CLIENT TRACKING on | FLUSHDB | EXEC\n0: MULTI | CLIENT TRACKING on | SET s1 v | FLUSHALL | EXEC\n",
    ),
];
