package run;

import android.content.Context;
import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.Security;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.birthmark.camera.BirthmarkCamera;

/**
 * Runs BirthmarkCamera on a JVM: renews if it is due, and captures meanwhile, before and after.
 *
 * <p>java -Dkeys=DIRECTORY run.Phone URL SERIAL picture.jpg FILES
 */
public final class Phone {
    private Phone() {}

    public static void main(String[] arguments) throws Exception {
        Security.addProvider(new FileKeyStore());
        File files = new File(arguments[3]);
        Context context = new Context() {
            @Override
            public File getNoBackupFilesDir() {
                return files;
            }
        };
        byte[] picture = Files.readAllBytes(Path.of(arguments[2]));
        BirthmarkCamera camera = new BirthmarkCamera(context, arguments[0], arguments[1], null);
        Queue<String> bundles = new ConcurrentLinkedQueue<>();
        bundles.add(camera.capture(picture));
        Thread other = new Thread(() -> {
            while (!Thread.currentThread().isInterrupted()) bundles.add(camera.capture(picture));
        });
        other.start();
        System.err.println("next call in " + camera.renewIfDue() + " ms");
        System.err.println("next call in " + camera.renewIfDue() + " ms");
        other.interrupt();
        other.join();
        bundles.add(camera.capture(picture));
        bundles.forEach(System.out::println);
    }
}
