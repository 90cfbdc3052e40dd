package android.content;

import java.io.File;

/** The part of Android's API that BirthmarkCamera.kt uses. The tests run it on a JVM. */
public abstract class Context {
    public abstract File getNoBackupFilesDir();
}
