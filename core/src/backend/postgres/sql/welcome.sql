-- The first statement on each connection: what kind of server, and what its clock says.
--
-- $1 the backend's process id as the log-in told it. A pooler tells one of its own: then this is somebody's server
-- connection for the length of one transaction, and nothing must be set on it.
--
-- The settings that this server knows (tcp_user_timeout from 12, client_connection_check_interval and
-- idle_session_timeout from 14, transaction_timeout from 17): a client that vanished is noticed within
-- 11 s, and no limit meant for other work ends our session.
WITH settings AS MATERIALIZED (
    SELECT count(set_config(wish.name, wish.setting, false)) AS done
    FROM (VALUES
        ('tcp_keepalives_idle', '5'), ('tcp_keepalives_interval', '2'), ('tcp_keepalives_count', '3'),
        ('tcp_user_timeout', '10000'), ('client_connection_check_interval', '2000'),
        ('idle_session_timeout', '0'), ('idle_in_transaction_session_timeout', '0'),
        ('statement_timeout', '0'), ('transaction_timeout', '0'), ('lock_timeout', '1000'),
        ('default_transaction_isolation', 'read committed')
    ) AS wish (name, setting)
    WHERE pg_backend_pid() = $1 AND EXISTS (SELECT 1 FROM pg_settings AS known WHERE known.name = wish.name)
)
SELECT pg_backend_pid() AS pid, pg_is_in_recovery() AS replica, current_setting('transaction_read_only') = 'on' AS read_only,
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now, settings.done
FROM settings
