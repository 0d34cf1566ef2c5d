import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;

/** Measures sign-outs: MAIN ADDRESS STARTED CALLS. */
final class Probe {
    interface Connect {
        SignOut to(String address) throws Exception;
    }

    interface SignOut {
        void call() throws Exception;
    }

    /** Prints what signing a user out took. */
    static void run(String[] args, Connect connect) throws Exception {
        SignOut signOut = connect.to(args[0]);
        int calls = Integer.parseInt(args[2]);
        signOut.call();
        double first = System.currentTimeMillis() - Double.parseDouble(args[1]) * 1e3;
        for (int i = 0; i < 100; i++) {
            signOut.call();
        }
        var process = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        long before = process.getProcessCpuTime();
        long[] took = new long[calls];
        for (int i = 0; i < calls; i++) {
            long began = System.nanoTime();
            signOut.call();
            took[i] = System.nanoTime() - began;
        }
        double cpu = process.getProcessCpuTime() - before;
        Arrays.sort(took);
        String peak = Files.readAllLines(Path.of("/proc/self/status")).stream()
                .filter(line -> line.startsWith("VmHWM:"))
                .map(line -> line.replaceAll("\\D", ""))
                .findFirst()
                .orElseThrow();
        System.out.printf("{\"first_ms\": %f, \"cpu_us\": %f, \"p50_us\": %f, \"rss_mb\": %f}%n",
                first, cpu / calls / 1e3, took[calls / 2] / 1e3, Long.parseLong(peak) / 1024.0);
        System.exit(0); // clients have threads of their own
    }

    private Probe() {}
}
