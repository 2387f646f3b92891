-- Gives the rows that were taken together one token. No row: somebody else's.
--
-- $1 keys, $2 owner token, $3 fencing token
WITH mine AS MATERIALIZED (
    SELECT key FROM polylock_session WHERE key = ANY ($1::text[]) AND owner = $2 ORDER BY key FOR UPDATE
), raised AS (
    UPDATE polylock_session AS l SET token = $3 FROM mine WHERE l.key = mine.key
    RETURNING CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
)
SELECT true FROM raised LIMIT 1
