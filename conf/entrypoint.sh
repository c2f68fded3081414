#!/bin/bash
# What the image of conf/Dockerfile runs. Kubernetes passes `executor` or `driver`, as to Spark's own image;
# anything else is a command: `spark-hpo run ...`, `spark-submit ...`.
set -e

# Spark passes the options of an executor's JVM as SPARK_JAVA_OPT_0, SPARK_JAVA_OPT_1, ...
readarray -t java_options < <(env | sed -n 's/^SPARK_JAVA_OPT_[0-9]*=//p')
classpath="$SPARK_HOME/conf:$SPARK_HOME/jars/*${SPARK_EXTRA_CLASSPATH:+:$SPARK_EXTRA_CLASSPATH}"

case "$1" in
  executor)
    exec java "${java_options[@]}" -Xms"$SPARK_EXECUTOR_MEMORY" -Xmx"$SPARK_EXECUTOR_MEMORY" \
      -cp "$classpath" \
      org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
      --driver-url "$SPARK_DRIVER_URL" \
      --executor-id "$SPARK_EXECUTOR_ID" \
      --cores "$SPARK_EXECUTOR_CORES" \
      --app-id "$SPARK_APPLICATION_ID" \
      --hostname "$SPARK_EXECUTOR_POD_IP" \
      --resourceProfileId "${SPARK_RESOURCE_PROFILE_ID:-0}" \
      --podName "$SPARK_EXECUTOR_POD_NAME"
    ;;
  driver)
    shift
    exec spark-submit --deploy-mode client \
      --conf "spark.driver.bindAddress=$SPARK_DRIVER_BIND_ADDRESS" "$@"
    ;;
  *)
    exec "$@"
    ;;
esac
