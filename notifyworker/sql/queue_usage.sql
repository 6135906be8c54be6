SELECT pg_notification_queue_usage() AS queue_usage
