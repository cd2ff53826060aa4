/* A server module for tests/it/module_commands.rs. Its commands are what a proxy has to tell apart:
 *
 *   WAITING.TAKE key milliseconds   flagged blocking: waits for a list to be filled, then pops its head
 *   WAITING.ADD key element         an ordinary write
 *
 * The module API is looked up by name, as every module does it, so no header of the server is needed. */

#include <stddef.h>

typedef struct Ctx Ctx;
typedef struct String String;
typedef struct Key Key;
typedef int (*Command)(Ctx *, String **, int);

enum { OK = 0, ERR = 1, API_VERSION = 1, READ = 1, WRITE = 2, HEAD = 0, TAIL = 1 };

static int (*CreateCommand)(Ctx *, const char *, Command, const char *, int, int, int);
static int (*SetModuleAttribs)(Ctx *, const char *, int, int);
static int (*WrongArity)(Ctx *);
static int (*StringToLongLong)(const String *, long long *);
static int (*ReplyWithError)(Ctx *, const char *);
static int (*ReplyWithNull)(Ctx *);
static int (*ReplyWithString)(Ctx *, String *);
static int (*ReplyWithLongLong)(Ctx *, long long);
static Key *(*OpenKey)(Ctx *, String *, int);
static void (*CloseKey)(Key *);
static size_t (*ValueLength)(Key *);
static int (*ListPush)(Key *, int, String *);
static String *(*ListPop)(Key *, int);
static void (*FreeString)(Ctx *, String *);
static void *(*BlockClientOnKeys)(Ctx *, Command, Command, void (*)(Ctx *, void *), long long, String **, int, void *);
static String *(*GetBlockedClientReadyKey)(Ctx *);
static void (*SignalKeyAsReady)(Ctx *, String *);

static int pop(Ctx *ctx, String *name) {
    Key *key = OpenKey(ctx, name, READ | WRITE);
    if (ValueLength(key) == 0) {
        CloseKey(key);
        return 0;
    }
    String *element = ListPop(key, HEAD);
    ReplyWithString(ctx, element);
    FreeString(ctx, element);
    CloseKey(key);
    return 1;
}

static int filled(Ctx *ctx, String **argv, int argc) {
    (void)argv, (void)argc;
    return pop(ctx, GetBlockedClientReadyKey(ctx)) ? OK : ERR;
}

static int timed_out(Ctx *ctx, String **argv, int argc) {
    (void)argv, (void)argc;
    return ReplyWithNull(ctx);
}

static int take(Ctx *ctx, String **argv, int argc) {
    long long time;
    if (argc != 3) return WrongArity(ctx);
    if (StringToLongLong(argv[2], &time) != OK) return ReplyWithError(ctx, "ERR timeout is not a number");
    if (!pop(ctx, argv[1])) BlockClientOnKeys(ctx, filled, timed_out, NULL, time, argv + 1, 1, NULL);
    return OK;
}

static int add(Ctx *ctx, String **argv, int argc) {
    if (argc != 3) return WrongArity(ctx);
    Key *key = OpenKey(ctx, argv[1], READ | WRITE);
    ListPush(key, TAIL, argv[2]);
    long long length = (long long)ValueLength(key);
    CloseKey(key);
    SignalKeyAsReady(ctx, argv[1]);
    return ReplyWithLongLong(ctx, length);
}

int RedisModule_OnLoad(Ctx *ctx, String **argv, int argc) {
    (void)argv, (void)argc;
    int (*get)(const char *, void *) = *(int (**)(const char *, void *))ctx;
#define API(name) if (get("RedisModule_" #name, &name) != OK) return ERR
    API(CreateCommand);
    API(SetModuleAttribs);
    API(WrongArity);
    API(StringToLongLong);
    API(ReplyWithError);
    API(ReplyWithNull);
    API(ReplyWithString);
    API(ReplyWithLongLong);
    API(OpenKey);
    API(CloseKey);
    API(ValueLength);
    API(ListPush);
    API(ListPop);
    API(FreeString);
    API(BlockClientOnKeys);
    API(GetBlockedClientReadyKey);
    API(SignalKeyAsReady);
    SetModuleAttribs(ctx, "waiting", 1, API_VERSION);
    if (CreateCommand(ctx, "waiting.take", take, "write blocking", 1, 1, 1) != OK) return ERR;
    return CreateCommand(ctx, "waiting.add", add, "write deny-oom", 1, 1, 1);
}
