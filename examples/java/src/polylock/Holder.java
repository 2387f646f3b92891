package polylock;

/**
 * Who holds a resource.
 *
 * @param owner the owner token; any text if another library holds it
 * @param label what the holder called itself, or null
 * @param fencingToken 0 if the backend knows of none
 */
public record Holder(String owner, String label, long fencingToken) {}
