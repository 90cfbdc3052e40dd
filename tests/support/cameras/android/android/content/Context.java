package android.content;

import java.io.File;

/** What BirthmarkCamera.kt uses of Android's, without what it does: enough to compile against. */
public abstract class Context {
    public abstract File getNoBackupFilesDir();
}
