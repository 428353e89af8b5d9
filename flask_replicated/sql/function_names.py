"""Names of SQL functions: those that lock, write or set, and the harmless ones."""

from __future__ import annotations

from .postgresql_functions import STABLE

__all__ = ["LOCKING", "PURE", "SEQUENCE", "SETTING", "TRANSACTION_TIME", "WRITING"]

_LOCKING = """
    get_lock release_lock release_all_locks is_free_lock is_used_lock
    pg_advisory_lock pg_advisory_lock_shared pg_advisory_unlock
    pg_advisory_unlock_all pg_advisory_unlock_shared pg_advisory_xact_lock
    pg_advisory_xact_lock_shared pg_try_advisory_lock
    pg_try_advisory_lock_shared pg_try_advisory_xact_lock
    pg_try_advisory_xact_lock_shared
    """
# currval() and the like write nothing, but depend on a write of their connection;
# others can only be answered by the primary.
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
# Keywords and types that may precede a parenthesis without being a call.
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
# Functions that each server documents as only computing or reporting. On the primary,
# a call of any other function counts as a possible write and pins its client. For
# PostgreSQL these are the functions that its catalogue calls volatile although they
# write nothing, and grammar; the rest is generated (postgresql_functions.py).
_POSTGRESQL = """
    array_sample array_shuffle clock_timestamp coalesce columns current_catalog
    current_date current_query current_time current_timestamp gen_random_uuid
    greatest json_array json_arrayagg json_exists json_objectagg json_query
    json_scalar json_serialize json_table json_value least lo_get localtime
    localtimestamp merge_action nullif pg_blocking_pids
    pg_collation_actual_version pg_control_checkpoint pg_control_init
    pg_control_recovery pg_control_system pg_database_size
    pg_get_wal_replay_pause_state pg_hba_file_rules pg_ident_file_mappings
    pg_indexes_size pg_is_in_recovery pg_is_wal_replay_paused pg_jit_available
    pg_last_committed_xact pg_last_wal_receive_lsn pg_last_wal_replay_lsn
    pg_last_xact_replay_timestamp pg_lock_status pg_ls_dir pg_ls_logdir
    pg_ls_tmpdir pg_ls_waldir pg_notification_queue_usage pg_partition_ancestors
    pg_partition_tree pg_prepared_xact pg_read_binary_file pg_read_file
    pg_relation_size pg_safe_snapshot_blocking_pids pg_sequence_last_value
    pg_show_all_file_settings pg_sleep pg_sleep_for pg_sleep_until pg_stat_file
    pg_stat_get_backend_io pg_stat_get_backend_wal pg_stat_get_io pg_table_size
    pg_tablespace_size pg_total_relation_size pg_xact_commit_timestamp
    pg_xact_status random random_normal timeofday txid_status user uuidv4 uuidv7
    xmlattributes xmlconcat xmlelement xmlforest xmlnamespaces xmlparse xmlpi
    xmlroot xmlserialize xmltable
    """
# Those of well-known extensions that only compute, volatile ones included: uuid-ossp,
# pgcrypto, pg_trgm, unaccent, fuzzystrmatch, earthdistance, hstore, ltree, tablefunc,
# pgvector, TimescaleDB, PostGIS. One by one, since others of the same extensions write
# (set_limit(), the ST_ functions of topologies and rasters) or run SQL (crosstab()).
_POSTGRESQL_EXTENSIONS = """
    akeys armor avals binary_quantize box2d box3d cosine_distance crypt
    cube_distance daitch_mokotoff dearmor decrypt_iv difference digest
    dmetaphone dmetaphone_alt earth_box earth_distance encrypt_iv
    gen_random_bytes gen_salt geography geometry geometrytype halfvec
    hamming_distance hmac hstore hstore_to_array hstore_to_json
    hstore_to_json_loose hstore_to_jsonb hstore_to_jsonb_loose hstore_to_matrix
    inner_product jaccard_distance l1_distance l2_distance l2_norm l2_normalize
    lca levenshtein levenshtein_less_equal ll_to_earth locf ltree2text metaphone
    nlevel normal_rand pgp_armor_headers pgp_key_id pgp_pub_decrypt
    pgp_pub_decrypt_bytea pgp_pub_encrypt pgp_pub_encrypt_bytea pgp_sym_decrypt
    pgp_sym_decrypt_bytea pgp_sym_encrypt pgp_sym_encrypt_bytea
    postgis_full_version postgis_lib_version postgis_version show_limit
    show_trgm similarity skeys soundex sparsevec st_3dclosestpoint st_3ddistance
    st_3ddwithin st_3dextent st_3dintersects st_3dlength st_3dmakebox
    st_3dmaxdistance st_addpoint st_alphashape st_angle st_area st_asbinary
    st_asewkb st_asewkt st_asflatgeobuf st_asgeobuf st_asgeojson st_asgml
    st_ashexewkb st_askml st_asmvt st_asmvtgeom st_assvg st_astext st_astwkb
    st_asx3d st_azimuth st_boundary st_buffer st_buildarea st_centroid
    st_chaikinsmoothing st_clipbybox2d st_closestpoint st_clusterdbscan
    st_clusterintersecting st_clusterkmeans st_clusterwithin st_collect
    st_collectionextract st_collectionhomogenize st_concavehull st_contains
    st_containsproperly st_convexhull st_coveredby st_covers st_crosses
    st_curvetoline st_delaunaytriangles st_dfullywithin st_difference
    st_dimension st_disjoint st_distance st_distance_sphere st_distancesphere
    st_distancespheroid st_dump st_dumppoints st_dumprings st_dumpsegments
    st_dwithin st_endpoint st_envelope st_equals st_expand st_extent
    st_exteriorring st_flipcoordinates st_force2d st_force3d st_force4d
    st_frechetdistance st_generatepoints st_geogfromtext st_geogfromwkb
    st_geohash st_geomcollfromtext st_geometryfromtext st_geometryn
    st_geometrytype st_geomfromewkb st_geomfromewkt st_geomfromgeohash
    st_geomfromgeojson st_geomfromgml st_geomfromkml st_geomfromtext
    st_geomfromtwkb st_geomfromwkb st_hasarc st_hausdorffdistance st_hexagon
    st_hexagongrid st_interiorringn st_intersection st_intersects st_isclosed
    st_iscollection st_isempty st_ispolygonccw st_ispolygoncw st_isring
    st_issimple st_isvalid st_isvaliddetail st_isvalidreason st_length
    st_length2d st_length3d st_lengthspheroid st_linefrommultipoint
    st_linefromtext st_lineinterpolatepoint st_lineinterpolatepoints
    st_linelocatepoint st_linemerge st_linesubstring st_longestline st_m
    st_makebox2d st_makeenvelope st_makeline st_makepoint st_makepointm
    st_makepolygon st_makevalid st_maxdistance st_memsize st_memunion
    st_minimumboundingcircle st_minimumboundingradius st_minimumclearance
    st_multi st_ndims st_node st_normalize st_npoints st_nrings st_numgeometries
    st_numinteriorring st_numinteriorrings st_numpatches st_numpoints
    st_offsetcurve st_orderingequals st_orientedenvelope st_overlaps
    st_perimeter st_perimeter2d st_point st_pointfromgeohash st_pointfromtext
    st_pointfromwkb st_pointinsidecircle st_pointn st_pointonsurface st_points
    st_polyfromtext st_polygon st_polygonfromtext st_polygonize st_project
    st_quantizecoordinates st_reduceprecision st_relate st_relatematch
    st_removepoint st_removerepeatedpoints st_reverse st_rotate st_scale
    st_segmentize st_setpoint st_setsrid st_shift_longitude st_shiftlongitude
    st_shortestline st_simplify st_simplifypolygonhull
    st_simplifypreservetopology st_simplifyvw st_snap st_snaptogrid st_split
    st_square st_squaregrid st_srid st_startpoint st_subdivide st_summary
    st_swapordinates st_symdifference st_tileenvelope st_touches st_transform
    st_translate st_transscale st_triangulatepolygon st_unaryunion st_union
    st_voronoilines st_voronoipolygons st_within st_wrapx st_x st_xmax st_xmin
    st_y st_ymax st_ymin st_z st_zmax st_zmflag st_zmin strict_word_similarity
    subltree subpath subvector svals text2ltree time_bucket time_bucket_gapfill
    unaccent uuid_generate_v1 uuid_generate_v1mc uuid_generate_v3
    uuid_generate_v4 uuid_generate_v5 uuid_nil uuid_ns_dns uuid_ns_oid
    uuid_ns_url uuid_ns_x500 vector vector_dims vector_norm word_similarity
    """
# From MariaDB's and MySQL's manuals.
_MYSQL = """
    abs acos add_months adddate addtime aes_decrypt aes_encrypt any_value area
    asbinary ascii asin astext aswkb aswkt atan atan2 avg benchmark bin
    bin_to_uuid binlog_gtid_pos bit_and bit_count bit_length bit_or bit_xor
    boundary buffer can_access_column can_access_database can_access_table
    can_access_view ceil ceiling centroid char_length character_length charset
    chr coalesce coercibility collation column_add column_check column_create
    column_delete column_exists column_get column_json column_list columns
    compress concat concat_ws connection_id contains conv convert_tz convexhull
    cos cot count crc32 crc32c crosses cume_dist curdate current_date
    current_role current_time current_timestamp current_user curtime database
    date_add date_format date_sub datediff day dayname dayofmonth dayofweek
    dayofyear decode decode_histogram decode_oracle default degrees dense_rank
    des_decrypt des_encrypt dimension disjoint div elt encode encrypt endpoint
    envelope equals exp export_set exteriorring extractvalue field find_in_set
    first_value floor format format_bytes format_pico_time found_rows
    from_base64 from_days from_unixtime geomcollfromtext geomcollfromwkb
    geometrycollection geometrycollectionfromtext geometrycollectionfromwkb
    geometryfromtext geometryfromwkb geometryn geometrytype geomfromtext
    geomfromwkb get_format glength greatest group_concat gtid_subset
    gtid_subtract hex hour icu_version if ifnull inet6_aton inet6_ntoa inet_aton
    inet_ntoa insert instr interiorringn intersects is_ipv4 is_ipv4_compat
    is_ipv4_mapped is_ipv6 is_uuid isclosed isempty isnull isring issimple
    json_array json_array_append json_array_insert json_array_intersect
    json_arrayagg json_compact json_contains json_contains_path json_depth
    json_detailed json_equals json_exists json_extract json_insert
    json_key_value json_keys json_length json_loose json_merge json_merge_patch
    json_merge_preserve json_normalize json_object json_object_filter_keys
    json_object_to_array json_objectagg json_overlaps json_pretty json_query
    json_quote json_remove json_replace json_schema_valid
    json_schema_validation_report json_search json_set json_storage_free
    json_storage_size json_table json_type json_unquote json_valid json_value
    kdf lag last_day last_value lcase lead least length lengthb linefromtext
    linefromwkb linestring linestringfromtext linestringfromwkb ln load_file
    localtime localtimestamp locate log log10 log2 lower lpad ltrim make_set
    makedate maketime master_gtid_wait master_pos_wait match max mbrcontains
    mbrcoveredby mbrdisjoint mbrequal mbrintersects mbroverlaps mbrtouches
    mbrwithin md5 median microsecond mid min minute mlinefromtext mlinefromwkb
    mod month monthname months_between mpointfromtext mpointfromwkb
    mpolyfromtext mpolyfromwkb multilinestring multilinestringfromtext
    multilinestringfromwkb multipoint multipointfromtext multipointfromwkb
    multipolygon multipolygonfromtext multipolygonfromwkb name_const
    natural_sort_key now nth_value ntile nullif numgeometries numinteriorrings
    numpoints nvl nvl2 oct octet_length old_password old_value ord overlaps
    password percent_rank percentile_cont percentile_disc period_add period_diff
    pi point pointfromtext pointfromwkb pointn pointonsurface polyfromtext
    polyfromwkb polygon polygonfromtext polygonfromwkb pow power
    ps_current_thread_id ps_thread_id quarter quote radians rand random_bytes
    rank regexp_instr regexp_like regexp_replace regexp_substr repeat replace
    reverse roles_graphml round row_count row_number rownum rpad rtrim schema
    sec_to_time second session_user sformat sha sha1 sha2 sign sin sleep soundex
    source_pos_wait space sqrt srid st_area st_asbinary st_asgeojson st_astext
    st_aswkb st_aswkt st_boundary st_buffer st_buffer_strategy st_centroid
    st_collect st_contains st_convexhull st_crosses st_difference st_dimension
    st_disjoint st_distance st_distance_sphere st_endpoint st_envelope st_equals
    st_exteriorring st_frechetdistance st_geohash st_geomcollfromtext
    st_geomcollfromwkb st_geometrycollectionfromtext
    st_geometrycollectionfromwkb st_geometryfromtext st_geometryfromwkb
    st_geometryn st_geometrytype st_geomfromgeojson st_geomfromtext
    st_geomfromwkb st_hausdorffdistance st_interiorringn st_intersection
    st_intersects st_isclosed st_isempty st_isring st_issimple st_isvalid
    st_latfromgeohash st_latitude st_length st_linefromtext st_linefromwkb
    st_lineinterpolatepoint st_lineinterpolatepoints st_linestringfromtext
    st_linestringfromwkb st_longfromgeohash st_longitude st_makeenvelope
    st_mlinefromtext st_mpointfromtext st_mpointfromwkb st_mpolyfromtext
    st_mpolyfromwkb st_multilinestringfromtext st_multipointfromtext
    st_multipointfromwkb st_multipolygonfromtext st_multipolygonfromwkb
    st_numgeometries st_numinteriorrings st_numpoints st_overlaps
    st_pointatdistance st_pointfromgeohash st_pointfromtext st_pointfromwkb
    st_pointn st_pointonsurface st_polyfromtext st_polyfromwkb
    st_polygonfromtext st_polygonfromwkb st_relate st_simplify st_srid
    st_startpoint st_swapxy st_symdifference st_touches st_transform st_union
    st_validate st_within st_x st_y startpoint statement_digest
    statement_digest_text std stddev stddev_pop stddev_samp str_to_date strcmp
    subdate substr substring_index subtime sum sys_guid sysdate system_user tan
    time_format time_to_sec timediff timestampadd timestampdiff to_base64
    to_char to_date to_days to_number to_seconds touches trim_oracle trunc
    truncate ucase uncompress uncompressed_length unhex unix_timestamp updatexml
    upper user utc_date utc_time utc_timestamp uuid_short uuid_to_bin uuid_v4
    uuid_v7 validate_password_strength var_pop var_samp variance vec_distance
    vec_distance_cosine vec_distance_euclidean vec_fromtext vec_totext version
    wait_for_executed_gtid_set week weekday weekofyear weight_string
    wsrep_last_seen_gtid wsrep_last_written_gtid wsrep_sync_wait_upto_gtid x y
    year yearweek
    """
# SQLite's own, with full-text search and R*Trees.
_SQLITE = """
    abs acos acosh asin asinh atan atan2 atanh avg bm25 ceil ceiling changes
    coalesce concat concat_ws cos cosh count cume_dist current_date current_time
    current_timestamp degrees dense_rank exp first_value floor format
    generate_series glob group_concat hex highlight if ifnull iif instr
    json_array json_array_insert json_array_length json_each json_error_position
    json_extract json_group_array json_group_object json_insert json_object
    json_patch json_pretty json_quote json_remove json_replace json_set
    json_tree json_type json_valid jsonb_array jsonb_array_insert jsonb_each
    jsonb_extract jsonb_group_array jsonb_group_object jsonb_insert jsonb_object
    jsonb_patch jsonb_remove jsonb_replace jsonb_set jsonb_tree julianday lag
    last_insert_rowid last_value lead length likelihood likely ln log log10 log2
    lower ltrim match matchinfo max median min mod nth_value ntile nullif
    octet_length offsets percent_rank percentile percentile_cont percentile_disc
    pi pow power printf quote radians random randomblob rank replace round
    row_number rtreecheck rtreedepth rtreenode rtrim sign sin sinh snippet
    soundex sqlite_compileoption_get sqlite_compileoption_used sqlite_offset
    sqlite_source_id sqlite_version sqrt strftime string_agg substr subtype sum
    tan tanh timediff total total_changes trunc typeof unhex unicode unistr
    unistr_quote unixepoch unlikely upper zeroblob
    """

# Or words in a literal that are resolved when it begins.
_TRANSACTION_TIME = """
    age current_date current_time current_timestamp localtime localtimestamp now
    transaction_timestamp today tomorrow yesterday
    """

LOCKING = frozenset(_LOCKING.split())
"""Functions that lock rows or names."""
WRITING = frozenset(_WRITING.split())
"""Functions that change something, or that only the primary can answer."""
SEQUENCE = frozenset({"nextval", "currval", "lastval", "last_insert_id"})
"""Functions of the sequence that numbers a table's rows: part of its inserts."""
SETTING = frozenset({"set_config"})
"""Functions that change the session."""
TRANSACTION_TIME = frozenset(_TRANSACTION_TIME.split())
"""Words that depend on when their transaction began."""
PURE = {
    dialect: frozenset(_WORDS.split()).union(more.split(), generated)
    for dialect, more, generated in (
        ("postgresql", _POSTGRESQL + _POSTGRESQL_EXTENSIONS, STABLE),
        ("mysql", _MYSQL, ()),
        ("mariadb", _MYSQL, ()),
        ("sqlite", _SQLITE, ()),
    )
}
"""Words before a parenthesis that are known to write nothing, by dialect."""
