"""Names of SQL functions: what locks, what writes, and what surely does neither."""

from __future__ import annotations

__all__ = ["LOCKING", "OF_TRANSACTION", "PURE", "SETTING", "WRITING"]

_LOCKING = """
    get_lock release_lock release_all_locks is_free_lock is_used_lock
    pg_advisory_lock pg_advisory_lock_shared pg_advisory_unlock
    pg_advisory_unlock_all pg_advisory_unlock_shared pg_advisory_xact_lock
    pg_advisory_xact_lock_shared pg_try_advisory_lock
    pg_try_advisory_lock_shared pg_try_advisory_xact_lock
    pg_try_advisory_xact_lock_shared
    """
# currval() and its like write nothing: they speak of a write of their connection.
# And some can only be answered by the primary.
_WRITING = """
    nextval setval currval lastval next_value last_insert_id
    pg_notify txid_current pg_current_xact_id pg_export_snapshot
    dblink_exec lo_creat lo_create lo_open lo_truncate lo_from_bytea lo_import lo_put
    lo_unlink lowrite
    pg_logical_emit_message pg_switch_wal pg_create_restore_point
    pg_promote pg_wal_replay_pause pg_wal_replay_resume
    pg_create_logical_replication_slot pg_create_physical_replication_slot
    pg_copy_logical_replication_slot pg_copy_physical_replication_slot
    pg_drop_replication_slot pg_replication_slot_advance
    pg_logical_slot_get_changes pg_logical_slot_get_binary_changes
    pg_sync_replication_slots lo_export pg_file_write pg_file_rename pg_file_unlink
    pg_stat_reset pg_stat_reset_shared pg_stat_reset_slru
    pg_stat_reset_single_table_counters pg_stat_reset_single_function_counters
    pg_stat_reset_replication_slot pg_stat_reset_subscription_stats
    pg_stat_statements_reset pg_reload_conf pg_rotate_logfile
    pg_terminate_backend pg_cancel_backend pg_log_backend_memory_contexts
    pg_current_wal_lsn pg_current_wal_insert_lsn pg_current_wal_flush_lsn
    pg_walfile_name pg_walfile_name_offset pg_replication_origin_create
    pg_replication_origin_drop pg_replication_origin_advance pg_backup_start
    pg_backup_stop pg_import_system_collations
    """
# Words that may stand before a parenthesis and call nothing.
_WORDS = """
    all and any array as between by case cast convert cross cube distinct else end
    escape except exists extract filter from full group grouping having in inner
    intersect interval is join lateral left like limit not of on or order outer over
    partition position recursive returning right rollup row rows select sets similar
    some substring then treat trim union using values when where window with within
    bigint binary bit boolean char character date decimal double float int integer
    nchar numeric nvarchar precision real smallint text time timestamp varbinary
    varchar varying json jsonb uuid signed unsigned datetime
    """
# What PostgreSQL, MariaDB, MySQL and SQLite document to compute or tell something, of
# what applications use; it need not be complete. Whatever is not here counts as a
# possible write where that is cheap: on the primary, for a pin.
_COMPUTING = """
    abs acos age array_agg array_length array_position array_remove array_to_string
    ascii asin atan atan2 avg bit_and bit_length bit_or bool_and bool_or ceil
    ceiling char_length character_length chr coalesce concat concat_ws connection_id
    corr cos cot count cume_dist curdate current_catalog current_database
    current_date current_schema current_schemas current_setting current_time
    current_timestamp current_user curtime database date_add date_format date_part
    date_sub date_trunc datediff day dayname dayofmonth dayofweek dayofyear decode
    degrees dense_rank div encode every exp field find_in_set first_value floor
    format from_unixtime gen_random_uuid generate_series glob greatest group_concat
    hex hour hstore if ifnull iif inet_client_addr inet_server_addr inet_server_port
    initcap instr isnull json_agg json_array json_array_length json_arrayagg
    json_build_array json_build_object json_contains json_each json_extract
    json_group_array json_group_object json_object json_object_agg json_objectagg
    json_query json_tree json_type json_unquote json_valid json_value jsonb_agg
    jsonb_array_elements jsonb_array_length jsonb_build_object jsonb_each
    jsonb_object_agg jsonb_path_exists jsonb_path_query jsonb_typeof julianday
    justify_days lag last_day last_value lcase lead least length ln localtime
    localtimestamp locate log log10 log2 lower lpad ltrim make_date make_interval
    make_timestamp match max md5 microsecond mid min minute mod month monthname now
    nth_value ntile nullif octet_length overlay percent_rank percentile_cont
    percentile_disc pg_backend_pid pg_database_size pg_is_in_recovery
    pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_last_xact_replay_timestamp
    pg_postmaster_start_time pg_relation_size pg_size_pretty pg_sleep pg_table_size
    pg_total_relation_size pg_typeof phraseto_tsquery pi plainto_tsquery pow power
    printf quarter quote quote_literal radians rand random rank regexp_like
    regexp_match regexp_matches regexp_replace regexp_split_to_array repeat replace
    reverse round row_number row_to_json rpad rtrim schema second session_user
    setweight sha1 sha2 sign similarity sin split_part sqlite_version sqrt
    st_asgeojson st_astext st_contains st_distance st_dwithin st_intersects
    starts_with stddev str_to_date strftime string_agg string_to_array strpos substr
    sum sysdate tan timediff timestampdiff to_char to_date to_json to_jsonb
    to_number to_regclass to_timestamp to_tsquery to_tsvector total translate trunc
    truncate ts_headline ts_rank typeof ucase unicode unistr unix_timestamp unnest
    upper user utc_timestamp variance version websearch_to_tsquery
    week weekday weekofyear width_bucket
    word_similarity year yearweek
    """

# And words in a literal that mean a day of it.
_OF_TRANSACTION = """
    age current_date current_time current_timestamp localtime localtimestamp now
    transaction_timestamp today tomorrow yesterday
    """

LOCKING = frozenset(_LOCKING.split())
"""Functions that lock rows or names."""
WRITING = frozenset(_WRITING.split())
"""Functions that change something, or can only be answered where that happens."""
SETTING = frozenset({"set_config"})
"""Functions that change the session."""
OF_TRANSACTION = frozenset(_OF_TRANSACTION.split())
"""Words that stand for the time at which a transaction began."""
PURE = frozenset(_WORDS.split()) | frozenset(_COMPUTING.split())
"""What may stand before a parenthesis and surely writes nothing."""
