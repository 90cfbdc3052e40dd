package android.util;

import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.StandardCopyOption;

/** Android's: a file that is replaced as a whole. */
public class AtomicFile {
    private final File base;
    private final File partial;

    public AtomicFile(File baseName) {
        base = baseName;
        partial = new File(baseName.getPath() + ".new");
    }

    public File getBaseFile() {
        return base;
    }

    public byte[] readFully() throws IOException {
        return Files.readAllBytes(base.toPath());
    }

    public FileOutputStream startWrite() throws IOException {
        return new FileOutputStream(partial);
    }

    public void finishWrite(FileOutputStream stream) {
        try {
            stream.getFD().sync();
            stream.close();
            Files.move(partial.toPath(), base.toPath(), StandardCopyOption.ATOMIC_MOVE);
        } catch (IOException error) {
            throw new IllegalStateException(error); // Android's logs it
        }
    }

    public void failWrite(FileOutputStream stream) {
        partial.delete();
    }

    public void delete() {
        base.delete();
        partial.delete();
    }
}
