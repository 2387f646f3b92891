package polylock;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Stream;

/** Plays tests/scenarios, whose README has the format, on every backend. */
final class Scenarios {
    private static final class Actor {
        final LockManager locks;
        Lease lease;
        long token;
        long tokenBefore;
        CompletableFuture<Lease> pending;

        Actor(LockManager locks) {
            this.locks = locks;
        }

        String took(Lease won) {
            lease = won;
            tokenBefore = token;
            token = won.fencingToken();
            return "ok";
        }
    }

    private final List<Path> files;
    private final AtomicInteger played = new AtomicInteger();
    private final AtomicInteger failed = new AtomicInteger();

    Scenarios(Path directory) throws IOException {
        try (Stream<Path> found = Files.list(directory)) {
            files = found.filter(file -> file.toString().endsWith(".scenario")).sorted().toList();
        }
        PolylockTest.check(files.size() >= 20, "too few scenarios");
    }

    int played() {
        return played.get();
    }

    int failed() {
        return failed.get();
    }

    void playAll() throws InterruptedException {
        String urls = System.getenv().getOrDefault("POLYLOCK_TEST_URLS", "memory:");
        List<Thread> threads = new ArrayList<>();
        for (String url : urls.split(" ")) {
            int number = threads.size();
            Thread thread = new Thread(() -> {
                for (int i = 0; i < files.size(); i++) {
                    String prefix = "java-" + ProcessHandle.current().pid() + "-" + number + "-" + i;
                    try {
                        if (new Play(url, prefix).play(files.get(i))) {
                            played.incrementAndGet();
                        }
                    } catch (Throwable e) {
                        e.printStackTrace();
                        played.incrementAndGet();
                        failed.incrementAndGet();
                    }
                }
            });
            threads.add(thread);
            thread.start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
    }

    /** One scenario on one backend. */
    private static final class Play {
        private final String[] urls;
        private final String prefix;
        private final Map<String, Actor> actors = new HashMap<>();

        Play(String url, String prefix) {
            this.urls = (url.equals("memory:") ? url + prefix : url).split(",");
            this.prefix = prefix;
        }

        /** Whether it was played: not if the backend lacks what it needs. */
        boolean play(Path file) throws Exception {
            int steps = 0;
            int number = 0;
            try {
                for (String line : Files.readAllLines(file)) {
                    number++;
                    if (line.isEmpty() || line.startsWith("#") || line.startsWith("name: ")) {
                        continue;
                    }
                    if (line.startsWith("needs: ")) {
                        if (!can(line)) {
                            return false;
                        }
                        continue;
                    }
                    String[] parts = line.split(" => ", 2);
                    String expected = parts.length > 1 ? parts[1] : "";
                    if (line.contains("<invalid-utf8>")) {
                        continue; // no Java string is that
                    }
                    String outcome = step(parts[0].split(" "), expected);
                    PolylockTest.check(fits(outcome, expected),
                            file + ":" + number + ": " + line + " (on " + urls[0] + "): not " + outcome);
                    steps++;
                }
            } finally {
                actors.values().forEach(actor -> actor.locks.close());
            }
            PolylockTest.check(steps > 0, "no steps");
            return true;
        }

        private boolean can(String needs) {
            if (needs.contains("break") && urls[0].startsWith("memory:")) {
                return false;
            }
            return !needs.contains("inspect") || connect().canInspect();
        }

        /** With time for an answer: a busy machine is no dead server. */
        private LockManager connect() {
            return LockManager.connect(2000, urls);
        }

        private static boolean fits(String outcome, String expected) {
            String[] range = expected.split("\\.\\.");
            if (range.length != 2) {
                return outcome.equals(expected);
            }
            long number = Long.parseLong(outcome);
            return Long.parseLong(range[0]) <= number && number <= Long.parseLong(range[1]);
        }

        private String name(String word) {
            return switch (word) {
                case "<empty>" -> "";
                case "<long>" -> "x".repeat(1025);
                case "<nul>" -> "a\0b";
                default -> prefix + ":" + word;
            };
        }

        private static double number(String text) {
            return text.equals("nan") ? Double.NaN : Double.parseDouble(text);
        }

        private String step(String[] words, String expected) throws Exception {
            if (words[0].equals("sleep")) {
                Thread.sleep((long) number(words[1]));
                return "";
            }
            if (words[0].equals("break")) {
                Process process = new ProcessBuilder(System.getenv("POLYLOCK_TEST_BREAK"), name(words[1])).inheritIO().start();
                return process.waitFor() == 0 ? "" : "not broken";
            }
            Map<String, String> keys = new HashMap<>();
            for (String word : words) {
                int equals = word.indexOf('=');
                if (equals > 0) {
                    keys.put(word.substring(0, equals), word.substring(equals + 1));
                }
            }
            Actor actor = actors.computeIfAbsent(words[0], ignored -> new Actor(connect()));
            try {
                return act(actor, words, keys, expected);
            } catch (PolylockException e) {
                return e.code().stableName() + (e.argument() == null ? "" : ":" + e.argument());
            }
        }

        private static Options how(Map<String, String> keys) {
            Options how = Options.DEFAULTS.ttlMs(number(keys.getOrDefault("ttl", "5000")));
            String wait = keys.getOrDefault("wait", "none");
            if (!wait.equals("forever")) {
                how = how.waitMs(wait.equals("none") ? 0 : number(wait));
            }
            if (keys.containsKey("auto_extend")) {
                how = how.autoExtend(Boolean.parseBoolean(keys.get("auto_extend")));
            }
            if (keys.containsKey("max_hold")) {
                how = how.maxHoldMs(number(keys.get("max_hold")));
            }
            return keys.containsKey("label") ? how.label(keys.get("label")) : how;
        }

        private String act(Actor actor, String[] words, Map<String, String> keys, String expected) throws Exception {
            switch (words[1]) {
                case "acquire":
                    if (words[words.length - 1].equals("&")) {
                        actor.pending = actor.locks.acquireAsync(name(words[2]), how(keys));
                        return "";
                    }
                    return actor.took(actor.locks.acquire(name(words[2]), how(keys)));
                case "try":
                    Optional<Lease> won = actor.locks.tryAcquire(name(words[2]), how(keys));
                    return won.isPresent() ? actor.took(won.get()) : "busy";
                case "join":
                    try {
                        return actor.took(actor.pending.join());
                    } catch (CompletionException e) {
                        throw (PolylockException) e.getCause();
                    }
                case "cancel":
                    return actor.pending.cancel(true) ? "cancelled" : "too late";
                case "inspect":
                    return actor.locks.inspect(name(words[2]))
                            .map(holder -> holder.label() == null ? "held" : "held:" + holder.label()).orElse("free");
                case "waiting":
                    for (int round = 0; ; round++) {
                        String count = String.valueOf(actor.locks.waiting(name(words[2])));
                        if (count.equals(expected) || round == 1000) {
                            return count;
                        }
                        Thread.sleep(5);
                    }
                case "close":
                    actor.locks.close();
                    return "ok";
                case "newer_than":
                    return String.valueOf(actor.token > actors.get(words[2]).token);
                case "newer_than_before":
                    return String.valueOf(actor.token > actor.tokenBefore);
                default:
                    return ask(actor.lease, words[1], keys);
            }
        }

        private static String ask(Lease lease, String action, Map<String, String> keys) throws Exception {
            switch (action) {
                case "extend":
                    if (keys.containsKey("ttl")) {
                        lease.extendMs(number(keys.get("ttl")));
                    } else {
                        lease.extend();
                    }
                    return "ok";
                case "release":
                    return lease.release().name().toLowerCase();
                case "held":
                    return String.valueOf(lease.isHeld());
                case "remaining":
                    return String.valueOf(lease.remaining().toMillis());
                case "lost":
                    CompletableFuture<Lease.Loss> told = new CompletableFuture<>();
                    lease.onLost(told::complete);
                    Duration within = Duration.ofMillis((long) number(keys.get("within")));
                    told.completeOnTimeout(Lease.Loss.NONE, within.toMillis(), java.util.concurrent.TimeUnit.MILLISECONDS);
                    return told.join().name().toLowerCase();
                default:
                    return "unknown action " + action;
            }
        }
    }
}
