package android.content;

import java.io.File;

/** The part of Android's API that BirthmarkCamera.kt uses, without code: enough to compile it. */
public abstract class Context {
    public abstract File getNoBackupFilesDir();
}
